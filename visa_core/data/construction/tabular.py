"""Rows of a CSV or Parquet file or of a `datasets` folder, one at a time, with their places."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visa_core.data.construction.comparison import Intake, place
from visa_core.data.schema import DataError

BATCH = 512
"""Rows of a Parquet file that are in memory at once."""


@dataclass(frozen=True)
class Row:
    """Cells by column and where they stand: in a CSV file the line on which the row begins, else
    the row's number from 1.
    """

    path: str
    line: int
    cells: Mapping[str, Any]


def table_rows(path: str | Path, needed: Sequence[str], intake: Intake) -> Iterator[Row]:
    """Rows of a file by its ending (.parquet, else CSV), or of a folder: one that `datasets` saved,
    or one of Parquet or CSV files.

    Raises DataError for what cannot be read and for columns that are missing.
    """
    path = Path(path)
    if path.is_dir():
        yield from _folder_rows(path, needed, intake)
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path, needed)
    else:
        yield from _csv_rows(path, needed, intake)


def _csv_rows(path: Path, needed: Sequence[str], intake: Intake) -> Iterator[Row]:
    """Bytes that are no UTF-8 stay as lone surrogates, which `check_text` refuses in the row that
    holds them, so that one bad row does not end the file.
    """
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 refuses long conversations
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            _check_columns(path, header, needed)
            begin = reader.line_num + 1
            for cells in reader:
                line, begin = begin, reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    reason = f"the row has {len(cells)} cells, the header {len(header)}"
                    if begin - 1 > line:
                        reason += f"; it ends on line {begin - 1}; is a quote open?"
                    intake.reject("bad rows", place(path, line, reason))
                    intake.counts["rows"] += 1
                    continue
                yield Row(str(path), line, dict(zip(header, cells, strict=True)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error


def _parquet_rows(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    pq = _pyarrow_parquet()
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    _check_columns(path, file.schema_arrow.names, needed)
    number = 0
    for batch in file.iter_batches(batch_size=BATCH):
        for cells in batch.to_pylist():
            number += 1
            yield Row(str(path), number, cells)


def _folder_rows(path: Path, needed: Sequence[str], intake: Intake) -> Iterator[Row]:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _saved_rows(path, needed)
        return
    files = sorted(f for f in path.rglob("*") if f.suffix in (".parquet", ".csv"))
    if not files:
        raise DataError(
            f"{path}: the folder holds neither a data set that `datasets` saved nor Parquet or "
            "CSV files"
        )
    for file in files:
        yield from table_rows(file, needed, intake)


def _saved_rows(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    try:
        from datasets import DatasetDict, load_from_disk
    except ModuleNotFoundError:
        raise _missing("datasets", "a folder that `datasets` saved") from None
    found = load_from_disk(str(path))
    parts = dict(found) if isinstance(found, DatasetDict) else {"": found}
    for name, part in parts.items():
        where = str(path / name) if name else str(path)
        _check_columns(Path(where), part.column_names, needed)
        for number, cells in enumerate(part, 1):
            yield Row(where, number, cells)


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{path}: lacks the columns {', '.join(missing[:3])}{more}; it has "
            f"{', '.join(map(str, columns[:6]))} ..."
        )


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise _missing("pyarrow", "Parquet") from None
    return pyarrow.parquet


def _missing(package: str, what: str) -> DataError:
    return DataError(f"{what} needs the package {package}: pip install 'visa-core[data]'")
