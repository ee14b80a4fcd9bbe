"""Texts that are nearly the same, by MinHash and banded hashing; the index lives on disk.

A text is the set of its word triples. datasketch makes the signatures and chooses the bands; the
index is a table in SQLite rather than its dictionaries, which take over a kilobyte a text, so that
memory does not grow with the texts.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import struct
import zlib
from array import array
from functools import lru_cache
from typing import Any

import numpy as np

from visa_core.data.schema import DataError

PERMUTATIONS = 64
SEED = 1
CANDIDATES = 256
"""Texts that are compared at most; where there are more, they share a band with each other, and
with chains most of them are in one group already."""

TABLES = """
CREATE TABLE {name}_text (hash INTEGER PRIMARY KEY, member INTEGER);
CREATE TABLE {name}_band (key INTEGER, id INTEGER, PRIMARY KEY (key, id)) WITHOUT ROWID;
CREATE TABLE {name}_signature (id INTEGER PRIMARY KEY, signature BLOB);
"""
WORD = re.compile(r"\w+")


class NearTexts:
    """Groups texts as they come.

    chains=False: a text joins the first leader that it is near to, else becomes one (duplicates).
    chains=True: texts are joined through each other, so that no two near ones are in different
    groups (splits); `leader` then tells the group, and may change while texts are added.
    """

    def __init__(
        self, db: sqlite3.Connection, name: str, threshold: float, *, chains: bool = False
    ) -> None:
        self.db = db
        self.name = name
        self.threshold = threshold
        self.chains = chains
        self.parents = array("q")
        db.executescript(TABLES.format(name=name))
        if threshold < 1:
            self.bands, self.rows, self.permutations = _plan(threshold)
        self._cached = lru_cache(maxsize=16384)(self._add)

    def add(self, text: str) -> int:
        """Number of the text's group; with chains a number that `leader` takes."""
        return self._cached(" ".join(WORD.findall(text.casefold())) or text)

    def leader(self, member: int) -> int:
        """The group that a text has ended up in."""
        while self.parents[member] != member:
            self.parents[member] = self.parents[self.parents[member]]
            member = self.parents[member]
        return member

    def _add(self, plain: str) -> int:
        key = text_hash(plain)
        found = self.db.execute(
            f"SELECT member FROM {self.name}_text WHERE hash = ?", (key,)
        ).fetchone()
        if found is not None:
            return found[0]
        signature = self._signature(plain) if self.threshold < 1 else None
        near = self._near(signature) if signature is not None else []
        if near and not self.chains:
            member = min(near)
        else:
            member = self._new(signature)
            for other in near:
                a, b = sorted((self.leader(member), self.leader(other)))
                self.parents[b] = a
        self.db.execute(f"INSERT INTO {self.name}_text VALUES (?, ?)", (key, member))
        return member

    def _new(self, signature: np.ndarray | None) -> int:
        member = len(self.parents)
        self.parents.append(member)
        if signature is not None:
            rows = [(key, member) for key in self._keys(signature)]
            self.db.executemany(f"INSERT OR IGNORE INTO {self.name}_band VALUES (?, ?)", rows)
            self.db.execute(
                f"INSERT INTO {self.name}_signature VALUES (?, ?)", (member, signature.tobytes())
            )
        return member

    def _near(self, signature: np.ndarray) -> list[int]:
        """Numbers of indexed texts whose estimated similarity reaches the threshold."""
        keys = self._keys(signature)
        marks = ",".join("?" * len(keys))
        found = self.db.execute(
            f"SELECT DISTINCT b.id, signature FROM {self.name}_band b JOIN {self.name}_signature s "
            f"ON s.id = b.id WHERE key IN ({marks}) LIMIT {CANDIDATES}",
            keys,
        )
        near = [
            member
            for member, blob in found
            if (np.frombuffer(blob, dtype=signature.dtype) == signature).mean() >= self.threshold
        ]
        return sorted(near)

    def _keys(self, signature: np.ndarray) -> list[int]:
        raw = signature[: self.bands * self.rows].tobytes()
        size = len(raw) // self.bands
        return [
            _int64(bytes([band]) + raw[band * size : (band + 1) * size])
            for band in range(self.bands)
        ]

    def _signature(self, plain: str) -> np.ndarray:
        from datasketch import MinHash

        sketch = MinHash(
            num_perm=PERMUTATIONS,
            hashfunc=zlib.crc32,
            permutations=self.permutations,
            scheme="affine32",
        )
        sketch.update_batch(shingles(plain.split()))
        return sketch.hashvalues


def shingles(words: list[str]) -> list[bytes]:
    """Each three words in a row, once; all of a shorter text."""
    if len(words) < 3:
        return [" ".join(words).encode()]
    triples = zip(words, words[1:], words[2:], strict=False)
    return list({" ".join(triple).encode() for triple in triples})


def text_hash(*texts: str) -> int:
    """A signed 64-bit hash, the same on every machine; texts cannot run into each other."""
    return _int64(b"\x00".join(text.encode() for text in texts))


def _int64(raw: bytes) -> int:
    return struct.unpack("<q", hashlib.blake2b(raw, digest_size=8).digest())[0]


def _plan(threshold: float) -> tuple[int, int, Any]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError:
        raise DataError(
            "near duplicates need the package datasketch: pip install 'visa-core[data]', or "
            "compare exactly with near = 1"
        ) from None
    plan = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
    permutations = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme="affine32").permutations
    return plan.b, plan.r, permutations
