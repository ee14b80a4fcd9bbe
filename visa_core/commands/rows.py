"""Rows of a JSON-lines file through a model and out again: in order, every other key kept, bad rows
set aside with their place.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from visa_core.data.schema import (
    describe_rejected,
    numbered_lines,
    parse_object,
    write_jsonl,
)
from visa_core.types import Rejected

Item = TypeVar("Item")

CHUNKS = 16
"""Batches that are read and sorted by length together."""

SHOWN = 20
"""Bad rows that are named on stderr; the file beside the output holds them all."""

log = logging.getLogger("visa_core.commands")


@dataclass(frozen=True)
class Row(Generic[Item]):
    """A row of the input, and what the command made of it."""

    line: int
    data: dict[str, Any]
    item: Item


@dataclass(frozen=True)
class Counts:
    """Rows written and rows set aside."""

    written: int
    rejected: int


def through(
    source: Path,
    output: Path,
    read: Callable[[dict[str, Any]], Item],
    process: Callable[[Sequence[Item]], Sequence[dict[str, Any] | ValueError]],
    batch_size: int,
    label: str,
) -> Counts:
    """Write every row of `source` with what `process` adds to it; bad ones go beside `output`.

    read: makes an item of a row, or raises ValueError with the reason why the row is bad.
    process: what to add to the row of each item, or the ValueError that sets it aside.
    Raises ValueError for an output that is no regular file, and DataError when reading or writing
    fails. A file of rejected rows that an earlier run left is replaced or, without any, deleted.
    """
    if output.exists() and not output.is_file():
        raise ValueError(
            f"--output {output} is no regular file: rows are written aside and renamed"
        )
    rejected: list[Rejected] = []
    rows = list(_rows(source, read, rejected))
    added = _added(rows, process, CHUNKS * batch_size, label, str(source), rejected)
    written = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal written
        for row in added:
            written += 1
            yield row

    write_jsonl(output, counted())
    _set_aside(sorted(rejected, key=lambda entry: entry.line), rejected_path(output))
    return Counts(written, len(rejected))


def rejected_path(output: Path) -> Path:
    """Where the bad rows of `output` go: out.jsonl -> out.rejected.jsonl."""
    return output.with_name(f"{output.stem}.rejected.jsonl")


def _rows(
    source: Path, read: Callable[[dict[str, Any]], Item], rejected: list[Rejected]
) -> Iterator[Row[Item]]:
    for line, text in numbered_lines(source, rejected):
        try:
            data = parse_object(text)
            _check_encodable(data)
            yield Row(line, data, read(data))
        except ValueError as error:
            rejected.append(Rejected(path=str(source), line=line, reason=str(error), text=text))


def _check_encodable(data: dict[str, Any]) -> None:
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no text") from None


def _added(
    rows: list[Row[Item]],
    process: Callable[[Sequence[Item]], Sequence[dict[str, Any] | ValueError]],
    chunk: int,
    label: str,
    source: str,
    rejected: list[Rejected],
) -> Iterator[dict[str, Any]]:
    with tqdm(total=len(rows), desc=label, disable=None, dynamic_ncols=True) as bar:
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            results = process([row.item for row in part])
            for row, result in zip(part, results, strict=True):
                if isinstance(result, ValueError):
                    text = json.dumps(row.data, ensure_ascii=False)
                    reason = str(result)
                    rejected.append(Rejected(path=source, line=row.line, reason=reason, text=text))
                else:
                    yield row.data | result
            bar.update(len(part))


def _set_aside(rejected: Sequence[Rejected], path: Path) -> None:
    if not rejected:
        path.unlink(missing_ok=True)
        return
    write_jsonl(path, rejected)
    for entry in rejected[:SHOWN]:
        log.error("%s", describe_rejected(entry))
    log.error("%d rows set aside in %s", len(rejected), path)
