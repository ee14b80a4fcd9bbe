"""First-fit decreasing in plain Python: the specification of the C++ version."""

from __future__ import annotations

import numpy as np


def first_fit_decreasing(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Bin of each sequence, int64 [n]; see `op.bin_of_sequences`.

    Longest first, equal lengths in order of index, each into the first bin with room
    (Johnson 1973). A tree of maxima over the room left per bin finds that bin in O(log n). Bins
    not yet opened have the whole budget, so one is opened just when no open one has room.
    """
    check(lengths, budget)
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [budget] * (2 * leaves)
    bins = np.empty(len(lengths), dtype=np.int64)
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        bins[index] = _place(room, leaves, length)
    return bins


def _place(room: list[int], leaves: int, length: int) -> int:
    """Take `length` from the first bin with room for it, and return that bin."""
    node = 1
    while node < leaves:
        node *= 2
        node += room[node] < length
    room[node] -= length
    bin_index = node - leaves
    while node > 1:
        node //= 2
        room[node] = max(room[2 * node], room[2 * node + 1])
    return bin_index


def check(lengths: np.ndarray, budget: int) -> None:
    """Raise ValueError for a budget below 1, a negative length, or one above the budget."""
    if budget < 1:
        raise ValueError(f"budget must be at least 1 token, got {budget}")
    wrong = np.flatnonzero((lengths < 0) | (lengths > budget))
    if not len(wrong):
        return
    index = int(wrong[0])
    who = f"sequence {index} has length {int(lengths[index])}"
    if lengths[index] < 0:
        raise ValueError(f"{who}; lengths cannot be negative")
    raise ValueError(
        f"{who}, more than the budget of {budget} tokens; raise the budget or cut the sequence"
    )
