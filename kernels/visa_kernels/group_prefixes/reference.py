"""Prefix grouping in plain Python: the specification of the C++ version."""

from __future__ import annotations

import numpy as np


def group_prefixes(
    ids: np.ndarray, cu_seqlens: np.ndarray, prefix_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(group_ids, order, cu_groups, shared), int64; see `op.group_prefixes`."""
    flat, ends = ids.tolist(), cu_seqlens.tolist()
    rows = [flat[start:end] for start, end in zip(ends, ends[1:], strict=False)]
    members: dict[tuple[int, ...], list[int]] = {}
    for index, (row, length) in enumerate(zip(rows, prefix_lengths.tolist(), strict=True)):
        members.setdefault(tuple(row[:length]), []).append(index)
    group_ids = [0] * len(rows)
    order: list[int] = []
    cu_groups = [0]
    shared = []
    for group, indices in enumerate(members.values()):
        for index in indices:
            group_ids[index] = group
        order += indices
        cu_groups.append(len(order))
        shared.append(_shared([rows[index] for index in indices]))
    arrays = (group_ids, order, cu_groups, shared)
    return tuple(np.array(array, dtype=np.int64) for array in arrays)


def _shared(rows: list[list[int]]) -> int:
    """How many ids all rows begin with alike."""
    shared = len(rows[0])
    for row in rows[1:]:
        pairs = zip(rows[0][:shared], row, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(shared, len(row)))
    return shared
