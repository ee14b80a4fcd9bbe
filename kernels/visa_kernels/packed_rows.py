"""Packed token rows on the host: ids and cu_seqlens as the C++ functions take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class PackedRows(NamedTuple):
    """Rows of token ids end to end: row i is ids[cu_seqlens[i] : cu_seqlens[i + 1]].

    ids [N] integers of any width, cu_seqlens [n + 1] int64, both contiguous.
    """

    ids: np.ndarray
    cu_seqlens: np.ndarray


def checked_rows(
    rows: tuple[Tensor | np.ndarray, Tensor | np.ndarray], what: str
) -> PackedRows:
    """The rows as contiguous arrays on the host.

    Raises ValueError unless both are whole numbers in one dimension and cu_seqlens rises from 0 to
    the number of ids.
    """
    ids = whole_numbers(rows[0], f"{what}: ids")
    cu_seqlens = whole_numbers(rows[1], f"{what}: cu_seqlens").astype(np.int64, copy=False)
    if not len(cu_seqlens) or cu_seqlens[0] != 0 or cu_seqlens[-1] != len(ids):
        shown = cu_seqlens[:8].tolist()
        raise ValueError(f"{what}: cu_seqlens must rise from 0 to {len(ids)}, got {shown} ...")
    falls = np.flatnonzero(cu_seqlens[1:] < cu_seqlens[:-1])
    if len(falls):
        raise ValueError(f"{what}: cu_seqlens falls after row {int(falls[0])}")
    return PackedRows(ids, cu_seqlens)


def whole_numbers(x: Tensor | np.ndarray, what: str) -> np.ndarray:
    """A contiguous array [n] of whole numbers on the host."""
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{what} must be whole numbers in one dimension, "
            f"got shape {array.shape} of type {array.dtype}"
        )
    return np.ascontiguousarray(array)
