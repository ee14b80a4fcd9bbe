"""Reader of the ValueEval'23 tables: arguments and their twenty 0/1 labels, joined on the
argument's id.

These tables are clean, so anything odd means the wrong or a damaged file: every fault is an error
that names the file, the line and the column, and nothing is guessed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visa_core.data.schema import DataError
from visa_core.types import Dialogue
from visa_core.value_space import UnknownValueError, ValueSpace
from visa_core.values import VALUEEVAL20, VALUEEVAL_TO_SCHWARTZ

ID = "Argument ID"
ARGUMENT_COLUMNS = (ID, "Conclusion", "Stance", "Premise")
STANCES = ("in favor of", "against", "in favour of")
LABEL_COLUMNS = (ID, *(dimension.title for dimension in VALUEEVAL20.dimensions))


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A premise for or against a conclusion; `categories` has 20 entries of 0 or 1."""

    id: str
    conclusion: str
    stance: str
    premise: str
    categories: tuple[int, ...]

    @property
    def query(self) -> str:
        """What the premise responds to: the conclusion and the side it takes."""
        return f"{self.conclusion} [{self.stance}]"

    def dialogue(self, space: ValueSpace) -> Dialogue:
        """The argument as query and response, with its labels in `space` (the ten or the twenty).

        A space that knows neither gets no values: there is no map to it.
        """
        present = [
            name for name, label in zip(VALUEEVAL20.names, self.categories, strict=True) if label
        ]
        values = _in_space(present, space)
        return Dialogue(query=self.query, response=self.premise, values=values, id=self.id)


def _in_space(present: Sequence[str], space: ValueSpace) -> dict[str, float] | None:
    if space.names == VALUEEVAL20.names:
        return dict.fromkeys(present, 1.0)
    mapped = [value for name in present for value in VALUEEVAL_TO_SCHWARTZ[name]]
    try:
        return {space.names[space.index(value)]: 1.0 for value in mapped}
    except UnknownValueError:
        return None


def read_valueeval23(arguments: str | Path, labels: str | Path) -> list[Argument]:
    """Arguments of the first table with their labels from the second, in the first one's order.

    Raises DataError for a missing column, a wrong number of columns, an empty text, an unknown
    stance, a label that is not 0 or 1, a repeated id, and an id that only one of the tables has.
    """
    argument_rows = _read_table(arguments, ARGUMENT_COLUMNS)
    label_rows = _read_table(labels, LABEL_COLUMNS)
    for key, (line, _) in label_rows.items():
        if key not in argument_rows:
            raise DataError(f"{labels}:{line}: {ID} {key!r} is not in {arguments}")
    joined = []
    for key, (line, row) in argument_rows.items():
        if key not in label_rows:
            raise DataError(f"{arguments}:{line}: {ID} {key!r} has no labels in {labels}")
        _check_argument(arguments, line, row)
        joined.append(
            Argument(
                id=key,
                conclusion=row["Conclusion"].strip(),
                stance=row["Stance"].strip(),
                premise=row["Premise"].strip(),
                categories=_read_labels(labels, *label_rows[key]),
            )
        )
    return joined


def _read_table(path: str | Path, wanted: Sequence[str]) -> dict[str, tuple[int, dict[str, str]]]:
    """Rows by argument id, each with its line number."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 at byte {error.start + 1}") from None
    lines = text.replace("\r\n", "\n").split("\n")
    header = lines[0].split("\t") if lines else []
    for column in wanted:
        if column not in header:
            raise DataError(f"{path}:1: column {column!r} is missing; found: {', '.join(header)}")
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    table = csv.reader(lines[1:], delimiter="\t", quoting=csv.QUOTE_NONE)
    for line, cells in enumerate(table, 2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}:{line}: {len(cells)} columns where the header has {len(header)}"
            )
        row = dict(zip(header, cells, strict=True))
        if row[ID] in rows:
            raise DataError(
                f"{path}:{line}: {ID} {row[ID]!r} stands on line {rows[row[ID]][0]} too"
            )
        rows[row[ID]] = (line, row)
    if not rows:
        raise DataError(f"{path}: has a header but no rows")
    return rows


def _check_argument(path: str | Path, line: int, row: dict[str, str]) -> None:
    for column in ("Conclusion", "Premise"):
        if not row[column].strip():
            raise DataError(f"{path}:{line}: column {column!r} is empty")
    if row["Stance"].strip() not in STANCES:
        raise DataError(
            f"{path}:{line}: column 'Stance' must be one of {STANCES}, got {row['Stance']!r}"
        )


def _read_labels(path: str | Path, line: int, row: dict[str, str]) -> tuple[int, ...]:
    for column in LABEL_COLUMNS[1:]:
        if row[column] not in ("0", "1"):
            raise DataError(f"{path}:{line}: column {column!r} must be 0 or 1, got {row[column]!r}")
    return tuple(int(row[column]) for column in LABEL_COLUMNS[1:])
