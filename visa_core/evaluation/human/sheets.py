"""Sheets for human raters, without the names of systems; who is who stands in a file of its own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visa_core.data.schema import DataError, check_text, numbered_lines, parse_object
from visa_core.evaluation.journal import content_key
from visa_core.training.checkpoint import write_file
from visa_core.types import Rejected
from visa_core.value_space import ValueSpace

SHEET, KEY, ANSWERS = "sheet.json", "key.json", "answers"
CRITERIA = {
    "accuracy": "Which analysis names values that are really in the response, and no others?",
    "insight": "Which analysis sees more of what the response implies without saying it?",
    "overall": "Which analysis would you rather trust?",
}
"""What is asked about two profiles."""

MOST_VALUES = 3
"""Values that may be named as the most prominent ones of a response."""

SIGN_FROM = 0.25
"""From here on a value counts as promoted or opposed: half a level of the five-point scale."""

LEVELS = ((0.75, "strongly promotes"), (SIGN_FROM, "promotes"))

Identity = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class System:
    """Rows of one system, by what they belong to: their id, or query and response."""

    name: str
    rows: dict[Identity, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Sheets:
    """What raters see, what they must not see, and what was left out, with the reasons."""

    sheet: dict[str, Any]
    key: dict[str, Any]
    left_out: dict[str, int]


def read_system(argument: str, vectors: str, space: ValueSpace) -> System:
    """Rows of `NAME=FILE`, JSON lines with query, response and a value vector in the field
    `vectors` ("values" or "target"); "id" ties rows of several systems together.

    Raises DataError that names the file and line.
    """
    name, equals, path = argument.partition("=")
    if not equals or not name.strip() or not path:
        raise DataError(f"{argument!r}: give a system as NAME=FILE, such as ours=values.jsonl")
    rows: dict[Identity, dict[str, Any]] = {}
    rejected: list[Rejected] = []
    for line, text in numbered_lines(path, rejected):
        try:
            row = parse_object(text)
            for field in ("query", "response"):
                if row.get(field) is None:
                    raise ValueError(f"field {field!r} is missing")
                check_text(field, row[field])
            if not isinstance(row.get(vectors), Mapping):
                raise ValueError(f"field {vectors!r} must be an object of value names and numbers")
            space.vector(row[vectors])
            identity = _identity(row)
            if identity in rows:
                raise ValueError(
                    "its id, or query and response, was there before: give each row its own id"
                )
        except ValueError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        rows[identity] = row
    if rejected:
        raise DataError(f"{path}:{rejected[0].line}: {rejected[0].reason}")
    if not rows:
        raise DataError(f"{path}: holds no row")
    return System(name=name.strip(), rows=rows)


def _identity(row: Mapping[str, Any]) -> Identity:
    return (str(row["id"]),) if row.get("id") is not None else (row["query"], row["response"])


def make_sheets(
    comparison: Sequence[System],
    identification: Sequence[System],
    space: ValueSpace,
    *,
    most: int | None = None,
    seed: int = 0,
) -> Sheets:
    """Items of both tasks in random order, at most `most` sources each; sides drawn at random.

    Raises ValueError for a comparison of other than two systems and where no item is left.
    """
    names = [system.name for system in (*comparison, *identification)]
    if comparison and (len(comparison) != 2 or comparison[0].name == comparison[1].name):
        raise ValueError("--comparison takes two systems with different names")
    if len({system.name for system in identification}) < len(identification):
        raise ValueError("--identification: two systems have the same name")
    drawn = random.Random(seed)
    left_out: dict[str, int] = {}
    entries = [
        *_comparisons(comparison, space, most, drawn, left_out),
        *_identifications(identification, most, drawn, left_out),
    ]
    if not entries:
        raise ValueError(f"no item is left of {', '.join(names)}: {left_out or 'no system given'}")
    values = [
        {"name": d.name, "title": d.title, "definition": d.definition} for d in space.dimensions
    ]
    sheet = {
        "criteria": CRITERIA,
        "values": values,
        "most_values": MOST_VALUES,
        "items": [shown for shown, _ in entries],
    }
    key = {
        "sheet": content_key(sheet),
        "seed": seed,
        "space": space.to_dict(),
        "items": {shown["id"]: hidden for shown, hidden in entries},
    }
    return Sheets(sheet=sheet, key=key, left_out=left_out)


Entry = tuple[dict[str, Any], dict[str, Any]]


def _comparisons(
    systems: Sequence[System],
    space: ValueSpace,
    most: int | None,
    drawn: random.Random,
    left_out: dict[str, int],
) -> Iterable[Entry]:
    if not systems:
        return
    first, second = systems
    both = [identity for identity in first.rows if identity in second.rows]
    unpaired = len(first.rows) + len(second.rows) - 2 * len(both)
    _count(left_out, "only one system has the row", unpaired)
    usable = []
    for identity in both:
        texts = [analysis(system.rows[identity], space) for system in systems]
        usable += [(identity, texts)] if texts[0] != texts[1] else []
    _count(left_out, "both analyses say the same", len(both) - len(usable))
    for number, (identity, texts) in enumerate(_some(usable, most, drawn), 1):
        order = drawn.sample(range(2), 2)
        row = first.rows[identity]
        yield (
            {
                "id": f"c{number:04d}",
                "task": "comparison",
                "query": row["query"],
                "response": row["response"],
                "a": texts[order[0]],
                "b": texts[order[1]],
            },
            {"a": systems[order[0]].name, "b": systems[order[1]].name, "source": list(identity)},
        )


def _identifications(
    systems: Sequence[System], most: int | None, drawn: random.Random, left_out: dict[str, int]
) -> Iterable[Entry]:
    if not systems:
        return
    everywhere = [i for i in systems[0].rows if all(i in system.rows for system in systems)]
    lost = sum(len(system.rows) for system in systems) - len(systems) * len(everywhere)
    _count(left_out, "not every system has the row", lost)
    chosen = [(i, system) for i in _some(everywhere, most, drawn) for system in systems]
    drawn.shuffle(chosen)  # rewrites of one source do not stand together
    for number, (identity, system) in enumerate(chosen, 1):
        row = system.rows[identity]
        yield (
            {
                "id": f"i{number:04d}",
                "task": "identification",
                "query": row["query"],
                "response": row.get("rewrite", row["response"]),
            },
            {"system": system.name, "source": list(identity), "target": row["target"]},
        )


def _some(items: list[Any], most: int | None, drawn: random.Random) -> list[Any]:
    return drawn.sample(items, len(items) if most is None else min(most, len(items)))


def _count(left_out: dict[str, int], reason: str, number: int) -> None:
    if number:
        left_out[reason] = left_out.get(reason, 0) + number


def analysis(row: Mapping[str, Any], space: ValueSpace) -> str:
    """A row's text "analysis" where it has one, else its value vector in words."""
    if row.get("analysis"):
        return check_text("analysis", row["analysis"])
    lines = []
    for dimension, number in zip(space.dimensions, space.vector(row["values"]), strict=True):
        for least, word in LEVELS:
            if abs(number) >= least:
                word = word if number > 0 else word.replace("promotes", "opposes")
                lines.append(f"{dimension.title}: {word}")
                break
    return "\n".join(lines) or "No value is promoted or opposed."


def write_sheets(folder: Path, sheets: Sheets) -> None:
    """Write sheet.json and key.json. Raises ValueError where answers to another sheet lie."""
    answered = any((folder / ANSWERS).glob("*.jsonl")) if (folder / ANSWERS).is_dir() else False
    if answered and (folder / SHEET).is_file() and read_json(folder / SHEET) != sheets.sheet:
        raise ValueError(
            f"{folder / ANSWERS} holds answers to another sheet; choose another --out, or move "
            "them away"
        )
    write_file(folder / SHEET, json.dumps(sheets.sheet, indent=1, ensure_ascii=False) + "\n")
    write_file(folder / KEY, json.dumps(sheets.key, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that `write_sheets` wrote. Raises DataError that names it."""
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: make it with visa human export") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}") from None
