"""Annotations by content hash in an SQLite file, and every raw answer: nothing is paid for twice.

A reply and what it settles are written in one transaction as the reply arrives, so that a process
killed at any moment loses at most replies that had not arrived.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from visa_core.data.annotate.annotator import (
    Annotation,
    Invalid,
    RawAnswer,
    pack_levels,
    unpack_levels,
)
from visa_core.data.schema import DataError

Outcome = Annotation | Invalid

TABLES = """
CREATE TABLE IF NOT EXISTS outcome (
    key BLOB PRIMARY KEY, chosen BLOB, rejected BLOB, reason TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS raw (
    number INTEGER PRIMARY KEY, key BLOB, attempt INTEGER, text TEXT, error TEXT, invalid TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, time REAL
);
"""
AT_ONCE = 500


class AnnotationCache:
    """The store of one or more annotators' answers. `each`: commit after every record."""

    def __init__(self, path: Path, each: bool = True) -> None:
        self.path = path
        self.each = each
        self.failed: dict[bytes, str] = {}
        """Why nothing came back, for keys of this run; not kept, so that a later run asks again."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            self.db.executescript(TABLES)
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{path}: cannot be used as a cache of answers: {error}") from error

    def __enter__(self) -> AnnotationCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, key: bytes, outcome: Outcome | None, raw: RawAnswer | None = None) -> None:
        """Keep a reply and what it settles, see annotator.Record."""
        if raw is not None:
            numbers = (raw.prompt_tokens, raw.completion_tokens, time.time())
            self.db.execute(
                "INSERT INTO raw VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, raw.attempt, raw.text, raw.error, raw.invalid, *numbers),
            )
        if isinstance(outcome, Invalid) and outcome.failed:
            self.failed[key] = outcome.reason
        elif isinstance(outcome, Invalid):
            self._keep(key, None, None, outcome.reason)
        elif outcome is not None:
            self._keep(key, pack_levels(outcome.chosen), pack_levels(outcome.rejected), None)
        if self.each:
            self.db.commit()

    def _keep(
        self, key: bytes, chosen: bytes | None, rejected: bytes | None, reason: str | None
    ) -> None:
        row = (key, chosen, rejected, reason)
        self.db.execute("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?)", row)

    def commit(self) -> None:
        """Write what was recorded."""
        self.db.commit()

    def find(self, keys: Sequence[bytes], failed: bool = True) -> dict[bytes, Outcome]:
        """What is known of these keys; with `failed` also what failed in this run."""
        found: dict[bytes, Outcome] = {}
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(part))
            for key, chosen, rejected, reason in self.db.execute(
                f"SELECT key, chosen, rejected, reason FROM outcome WHERE key IN ({marks})", part
            ):
                if reason is None:
                    found[key] = Annotation(
                        chosen=unpack_levels(chosen), rejected=unpack_levels(rejected)
                    )
                else:
                    found[key] = Invalid(reason=reason)
        if failed:
            for key in keys:
                if key not in found and key in self.failed:
                    found[key] = Invalid(reason=self.failed[key], failed=True)
        return found

    def forget_invalid(self) -> int:
        """Drop the outcomes that stayed invalid, so that they are asked for again; how many."""
        dropped = self.db.execute("DELETE FROM outcome WHERE reason IS NOT NULL").rowcount
        self.db.commit()
        return dropped

    def raw_totals(self) -> dict[str, int]:
        """Replies and tokens of the raw log, over all runs: those that held a text, those of them
        that were no annotation, and requests given up.
        """
        row = self.db.execute(
            "SELECT count(*) - coalesce(sum(error != ''), 0), coalesce(sum(invalid != ''), 0), "
            "coalesce(sum(error != ''), 0), coalesce(sum(prompt_tokens), 0), "
            "coalesce(sum(completion_tokens), 0) FROM raw"
        ).fetchone()
        names = ("replies", "invalid", "given_up", "prompt_tokens", "completion_tokens")
        return dict(zip(names, row, strict=True))

    def export_raw(self, path: Path) -> int:
        """Write every raw answer as JSON lines, aside and renamed; returns how many."""
        columns = ("key", "attempt", "text", "error", "invalid")
        numbers = ("prompt_tokens", "completion_tokens", "time")
        names = ", ".join((*columns, *numbers))
        scratch = path.with_name(f".{path.name}.writing-{os.getpid()}")
        count = 0
        with scratch.open("w", encoding="utf-8") as file:
            for key, *rest in self.db.execute(f"SELECT {names} FROM raw ORDER BY number"):
                row = dict(zip((*columns, *numbers), (key.hex(), *rest), strict=True))
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        os.replace(scratch, path)
        return count

    def close(self) -> None:
        """Write and close."""
        self.db.commit()
        self.db.close()
