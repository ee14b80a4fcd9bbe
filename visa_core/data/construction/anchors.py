"""Anchor consistency: how much a response's annotated vectors vary over its comparisons.

A response's ambiguity is the mean squared distance of its vectors to their mean (the trace of their
covariance), on the scale -1 ... 1. A response that stands in one comparison has none.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from operator import itemgetter

import numpy as np

Mean = tuple[float, ...]


def ambiguity(vectors: Iterable[bytes]) -> tuple[int, float, Mean]:
    """(comparisons, ambiguity, mean levels in half steps) of packed level vectors."""
    levels_NK = np.frombuffer(b"".join(rows := list(vectors)), np.uint8).astype(np.float64) - 2
    levels_NK = levels_NK.reshape(len(rows), -1)
    mean_K = levels_NK.mean(0)
    spread = float(((levels_NK - mean_K) ** 2).sum(1).mean()) / 4
    return len(rows), spread, tuple(mean_K)


def grouped(db: sqlite3.Connection) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Occurrences (hash, levels) by response; SQLite sorts them on disk."""
    rows = db.execute("SELECT hash, levels FROM occurrence ORDER BY hash")
    for key, group in itertools.groupby(rows, key=itemgetter(0)):
        yield key, (levels for _, levels in group)


def measure_responses(db: sqlite3.Connection) -> None:
    """Fill the table response(hash, comparisons, ambiguity, mean) from occurrence(hash, levels)."""
    db.execute(
        "CREATE TABLE response (hash INTEGER PRIMARY KEY, comparisons INTEGER, ambiguity REAL, "
        "mean BLOB)"
    )

    def rows() -> Iterator[tuple[int, int, float, bytes]]:
        for key, vectors in grouped(db):
            count, spread, mean = ambiguity(vectors)
            yield key, count, spread, np.array(mean, np.float32).tobytes()

    db.executemany("INSERT INTO response VALUES (?, ?, ?, ?)", rows())


def mark_ambiguous(db: sqlite3.Connection, share: float, anchors: str) -> tuple[int, float]:
    """Fill the table ambiguous(seq) with the `share` of comparisons whose anchors vary most, those
    without any variance never; returns how many, and the least ambiguity among them.

    anchors: "both" takes the larger ambiguity of chosen and rejected, "chosen" the chosen one's.
    """
    measured = "c.ambiguity" if anchors == "chosen" else "max(c.ambiguity, r.ambiguity)"
    (total,) = db.execute("SELECT count(*) FROM pair").fetchone()
    db.execute("CREATE TABLE ambiguous (seq INTEGER PRIMARY KEY, ambiguity REAL)")
    db.execute(
        f"INSERT INTO ambiguous SELECT seq, {measured} AS spread FROM pair "
        "JOIN response c ON c.hash = pair.chosen_hash "
        "JOIN response r ON r.hash = pair.rejected_hash "
        "WHERE spread > 0 ORDER BY spread DESC, seq LIMIT ?",
        (int(total * share),),
    )
    count, least = db.execute("SELECT count(*), min(ambiguity) FROM ambiguous").fetchone()
    return count, least or 0.0
