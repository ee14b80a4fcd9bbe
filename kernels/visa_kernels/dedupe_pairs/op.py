"""Which pairs are equal, so that a model scores each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.dedupe_pairs import reference
from visa_kernels.packed_rows import PackedRows, checked_rows

Texts = Sequence[str]


class UniquePairs(NamedTuple):
    """The distinct pairs of a batch, in order of first occurrence.

    first    [U] int64: index of the first pair of each kind, ascending
    inverse  [n] int64: which of them each pair is, so that unique_scores[inverse] has every row
    """

    first: np.ndarray
    inverse: np.ndarray


def dedupe_pairs(
    premises: Texts | PackedRows | tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    hypotheses: Texts | PackedRows | tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    backend: str | None = None,
) -> UniquePairs:
    """The distinct pairs (premises[i], hypotheses[i]) of n.

    premises, hypotheses  both sequences of n str, compared by code point, or both packed token
                          rows (ids [N] integers, cu_seqlens [n + 1]), compared id by id

    Pairs are equal when both parts are, which is always checked in full, never by a hash alone.
    `backend` is "cpu" (the extension, which releases the GIL) or "reference", with equal results.
    Tensors on a GPU are copied to the host.

    Raises ValueError for two sides of different length or form and for cu_seqlens that do not
    rise from 0 to N, TypeError for an item that is no str.
    """
    run = backends.choose("dedupe_pairs", "cpu", backend)
    if _is_packed(premises) != _is_packed(hypotheses):
        raise ValueError("premises and hypotheses must both be texts or both be packed rows")
    if not _is_packed(premises):
        for what, texts in (("premises", premises), ("hypotheses", hypotheses)):
            if isinstance(texts, str):
                raise ValueError(f"{what} must be a sequence of texts, not one text")
        return UniquePairs(*run(premises, hypotheses))
    left, right = checked_rows(premises, "premises"), checked_rows(hypotheses, "hypotheses")
    _check_counts(len(left.cu_seqlens) - 1, len(right.cu_seqlens) - 1)
    return UniquePairs(*run(left, right))


def _is_packed(side: object) -> bool:
    """Whether it is (ids, cu_seqlens); a tuple of two texts is not."""
    if not isinstance(side, tuple) or len(side) != 2:
        return False
    return all(isinstance(part, Tensor | np.ndarray) for part in side)


def _check_counts(premises: int, hypotheses: int) -> None:
    if premises != hypotheses:
        raise ValueError(f"{premises} premises for {hypotheses} hypotheses")


def _reference(
    premises: Texts | PackedRows, hypotheses: Texts | PackedRows
) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(premises, PackedRows) and isinstance(hypotheses, PackedRows):
        return reference.unique_pairs(
            reference.rows_of(*premises), reference.rows_of(*hypotheses)
        )
    _check_counts(len(premises), len(hypotheses))
    for what, texts in (("premises", premises), ("hypotheses", hypotheses)):
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise TypeError(f"{what} must be texts, but item {index} is of type {kind}")
    return reference.unique_pairs(premises, hypotheses)


def _cpu(
    premises: Texts | PackedRows, hypotheses: Texts | PackedRows
) -> tuple[np.ndarray, np.ndarray]:
    from visa_kernels import _C

    if isinstance(premises, PackedRows) and isinstance(hypotheses, PackedRows):
        return _C.unique_row_pairs(*premises, *hypotheses)
    return _C.unique_text_pairs(premises, hypotheses)


backends.register(
    "dedupe_pairs",
    backends.Backend(name="cpu", function=_cpu, why_not=backends.why_no_extension),
    backends.Backend(name="reference", function=_reference),
)
