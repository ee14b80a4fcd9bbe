"""Packing of sequences into as few bins of a token budget as first-fit decreasing needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from visa_kernels import backend as backends
from visa_kernels.packing import reference


def pack_to_budget(
    lengths: Sequence[int] | np.ndarray | torch.Tensor, budget: int, backend: str | None = None
) -> list[list[int]]:
    """Group sequences so that no group holds more than `budget` tokens.

    Returns the indices of each bin, ascending; every index occurs once. The number of bins is at
    most 11/9 of the smallest possible, plus 2/3 (Dosa 2007). Errors as in `bin_of_sequences`.
    """
    bins = bin_of_sequences(lengths, budget, backend)
    if not len(bins):
        return []
    ends = np.cumsum(np.bincount(bins)).tolist()
    # numpy sorts 16-bit keys by counting.
    keys = bins.astype(np.uint16) if len(ends) <= 2**16 else bins
    order = np.argsort(keys, kind="stable").tolist()
    return [order[start:end] for start, end in pairwise([0, *ends])]


def bin_of_sequences(
    lengths: Sequence[int] | np.ndarray | torch.Tensor, budget: int, backend: str | None = None
) -> np.ndarray:
    """Bin of each sequence, int64 [n], bins numbered from 0 without gaps.

    First fit decreasing: longest first, equal lengths in order of index, each into the first bin
    with room. O(n log n); `backend` is "cpu" (the extension) or "reference", with equal results.

    Raises ValueError for lengths that are not whole numbers in one dimension, a budget below 1, a
    negative length, or a sequence longer than the budget (the message has its index and length).
    """
    run = backends.choose("pack_to_budget", "cpu", backend)
    return run(_as_int64(lengths), int(budget))


def _as_int64(lengths: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(lengths, torch.Tensor):
        lengths = lengths.detach().cpu().numpy()
    array = np.asarray(lengths)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            "lengths must be whole numbers in one dimension, "
            f"got shape {array.shape} of type {array.dtype}"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _cpu(lengths: np.ndarray, budget: int) -> np.ndarray:
    from visa_kernels import _C

    return _C.first_fit_decreasing(lengths, budget)


backends.register(
    "pack_to_budget",
    backends.Backend(name="cpu", function=_cpu, why_not=backends.why_no_extension),
    backends.Backend(name="reference", function=reference.first_fit_decreasing),
)
