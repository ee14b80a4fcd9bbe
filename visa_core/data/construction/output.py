"""Files of a data set: JSON lines and Parquet side by side, a split each, written as rows come."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visa_core.data.schema import DataError, describe_rejected, numbered_lines, parse_object
from visa_core.types import Rejected

SPLITS = ("train", "validation", "test")
ROWS = 2048
"""Rows of a Parquet row group, and the most that are held in memory for one file."""


class TwoFormats:
    """One table as NAME.jsonl and NAME.parquet in a folder. The first row fixes the columns; a
    split without rows has its files too when `columns` of another split are known.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._lines = (folder / f"{name}.jsonl").open("w", encoding="utf-8")
        self._encode = json.JSONEncoder(ensure_ascii=False).encode
        self._parquet_path = folder / f"{name}.parquet"
        self._writer: Any = None
        self._held: list[Mapping[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row to both files."""
        self._lines.write(self._encode(row) + "\n")
        self._held.append(row)
        self.rows += 1
        if len(self._held) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        pa, pq = pyarrow()
        table = pa.Table.from_pylist(self._held)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._parquet_path, table.schema, compression="zstd")
        self._writer.write_table(table.cast(self._writer.schema))
        self._held.clear()

    def close(self) -> None:
        """Write what is held. A table without rows leaves no files: no reader could tell its
        columns.
        """
        if self._held:
            self._flush()
        self._lines.close()
        if self._writer is not None:
            self._writer.close()
        else:
            Path(self._lines.name).unlink()


class SplitTables:
    """A table for each split, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.tables = {split: TwoFormats(folder, split) for split in SPLITS}

    def write(self, split: str, row: Mapping[str, Any]) -> None:
        """Append a row to a split's files."""
        self.tables[split].write(row)

    def close(self) -> dict[str, int]:
        """Finish the files; rows by split."""
        for table in self.tables.values():
            table.close()
        return {split: table.rows for split, table in self.tables.items()}


def refresh(folder: Path) -> dict[str, int]:
    """Write a table's Parquet files anew from its JSON lines, each aside and renamed; rows by
    split. Raises DataError for a line that is no object.
    """
    counts = {}
    for split in SPLITS:
        lines, parquet = folder / f"{split}.jsonl", folder / f"{split}.parquet"
        counts[split] = 0
        if not lines.is_file():
            parquet.unlink(missing_ok=True)
            continue
        table = TwoFormats(folder, f".{split}.writing")
        undecoded: list[Rejected] = []
        for line, text in numbered_lines(lines, undecoded):
            try:
                table.write(parse_object(text))
            except ValueError as error:
                raise DataError(f"{lines}:{line}: {error}") from None
        if undecoded:
            raise DataError(describe_rejected(undecoded[0]))
        table.close()
        counts[split] = table.rows
        if table.rows:
            os.replace(folder / f".{split}.writing.parquet", parquet)
            (folder / f".{split}.writing.jsonl").unlink()
        else:
            parquet.unlink(missing_ok=True)
    return counts


def pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module. Raises DataError that names the extra."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise DataError(
            "Parquet needs the package pyarrow: pip install 'visa-core[data]'"
        ) from None
    return pa, pq
