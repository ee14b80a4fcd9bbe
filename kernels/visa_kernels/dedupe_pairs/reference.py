"""Deduplication of pairs in plain Python: the specification of the C++ version."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def unique_pairs(
    premises: Sequence[Hashable], hypotheses: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """(first, inverse), int64; see `op.dedupe_pairs`."""
    number_of: dict[tuple[Hashable, Hashable], int] = {}
    first: list[int] = []
    inverse: list[int] = []
    for index, pair in enumerate(zip(premises, hypotheses, strict=True)):
        number = number_of.setdefault(pair, len(first))
        if number == len(first):
            first.append(index)
        inverse.append(number)
    return np.array(first, dtype=np.int64), np.array(inverse, dtype=np.int64)


def rows_of(ids: np.ndarray, cu_seqlens: np.ndarray) -> list[tuple[int, ...]]:
    """Packed rows as tuples."""
    flat, ends = ids.tolist(), cu_seqlens.tolist()
    return [tuple(flat[start:end]) for start, end in zip(ends, ends[1:], strict=False)]
