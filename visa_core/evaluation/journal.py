"""A file of keyed JSON lines, each on disk before the next: what is paid for is kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

from visa_core.training.checkpoint import CheckpointError


def content_key(*parts: Any) -> str:
    """Hash of anything that JSON can hold: equal parts, equal key."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """Records by key, appended to one file; the last record of a key counts.

    A line that a kill cut short is dropped on opening. One process at a time: a second one is
    refused. Raises CheckpointError when the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.records: dict[str, dict[str, Any]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise CheckpointError(
                f"{self.path} is in use by another run; wait for it or choose another --out"
            ) from error
        self._read()

    def _read(self) -> None:
        try:
            self.records, whole = read_journal(self.path)
        except CheckpointError:
            self.close()
            raise
        if whole < self.path.stat().st_size:
            self._file.truncate(whole)

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record; on disk when this returns."""
        record = {"key": key, **record}
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"cannot append to {self.path}: {error}. Free space, then start again: what is "
                "there is kept."
            ) from error
        self.records[key] = record

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.records[key]

    def __len__(self) -> int:
        return len(self.records)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Records of a journal by key, and the bytes up to its last whole line; takes no hold of it.

    Raises CheckpointError naming the line that is no record.
    """
    records: dict[str, dict[str, Any]] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut short
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records[record["key"]] = record
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}:{number}: not a record of this file ({error}); delete the line or choose "
                "another --out"
            ) from error
    return records, sum(len(line) + 1 for line in lines[:-1])
