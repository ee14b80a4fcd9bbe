"""The build's scratch database: comparisons and levels on disk, so that memory stays constant.

It is made anew by each run; what is dear to make, the answers, is in the cache.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from visa_core.data.annotate.annotator import Levels, pack_levels, unpack_levels
from visa_core.data.annotate.stage import Annotated
from visa_core.data.construction.near import NearTexts, text_hash

TABLES = """
CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pair (
    seq INTEGER PRIMARY KEY, id TEXT, prompt TEXT, chosen TEXT, rejected TEXT, root INTEGER,
    chosen_hash INTEGER, rejected_hash INTEGER, levels BLOB
);
CREATE TABLE occurrence (hash INTEGER, levels BLOB);
CREATE TABLE kept_triplet (prompt INTEGER, source INTEGER, rewrite INTEGER,
    PRIMARY KEY (prompt, source, rewrite)) WITHOUT ROWID;
CREATE TABLE kept_response (hash INTEGER PRIMARY KEY);
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison that is left, with its levels and the group of its first prompt."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    root: int
    chosen_hash: int
    rejected_hash: int
    chosen_levels: Levels
    rejected_levels: Levels


def open_scratch(path: Path) -> sqlite3.Connection:
    """An empty database for one run."""
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-131072", "temp_store=FILE"):
        db.execute(f"PRAGMA {pragma}")
    db.executescript(TABLES)
    db.execute("BEGIN")
    return db


def store_pairs(db: sqlite3.Connection, roots: NearTexts, rows: Iterable[Annotated]) -> int:
    """Keep annotated comparisons; returns how many were the same as an earlier one in every text,
    explanation included, and are not kept again.
    """
    repeated = 0
    for annotated in rows:
        if not db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (annotated.key,)).rowcount:
            repeated += 1
            continue
        c, a = annotated.comparison, annotated.annotation
        hashes = text_hash(c.prompt, c.chosen), text_hash(c.prompt, c.rejected)
        levels = pack_levels(a.chosen), pack_levels(a.rejected)
        db.execute(
            "INSERT INTO pair VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
            (c.id, c.prompt, c.chosen, c.rejected, roots.add(c.root), *hashes, b"".join(levels)),
        )
        db.executemany(
            "INSERT INTO occurrence VALUES (?, ?)", list(zip(hashes, levels, strict=True))
        )
    return repeated


def clear_pairs(db: sqlite3.Connection) -> Iterator[Pair]:
    """Comparisons that are not ambiguous, in the order in which they were read."""
    for row in db.execute(
        "SELECT id, prompt, chosen, rejected, root, chosen_hash, rejected_hash, levels FROM pair "
        "WHERE seq NOT IN (SELECT seq FROM ambiguous) ORDER BY seq"
    ):
        *texts, levels = row
        half = len(levels) // 2
        yield Pair(*texts, unpack_levels(levels[:half]), unpack_levels(levels[half:]))
