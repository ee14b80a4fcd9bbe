"""Which rows begin with the same prompt, so that it is packed and computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.group_prefixes import reference
from visa_kernels.packed_rows import checked_rows, whole_numbers


@dataclass(frozen=True, kw_only=True)
class PrefixGroups:
    """Rows by common prefix; all arrays are int64.

    Groups are numbered in order of first occurrence; group g is rows
    order[cu_groups[g] : cu_groups[g + 1]], in their own order.
    """

    group_ids: np.ndarray
    """[B] group of each row."""
    order: np.ndarray
    """[B] rows by group."""
    cu_groups: np.ndarray
    """[G + 1] where each group starts in `order`."""
    prefix: np.ndarray
    """[G] length of the prefix that the rows were grouped by."""
    shared: np.ndarray
    """[G] how many ids all rows of the group begin with alike: at least its prefix, and what their
    completions happen to share; the whole row of a group of one."""
    lengths: np.ndarray
    """[B] ids of each row."""

    def packed_lengths(self) -> np.ndarray:
        """Tokens of each group [G] with its prefix stored once: the lengths to give to
        `pack_to_budget`, whose bins are then of groups.
        """
        before = np.concatenate([[0], np.cumsum(self.lengths[self.order])])
        whole_G = np.diff(before[self.cu_groups])
        return whole_G - (np.diff(self.cu_groups) - 1) * self.prefix


def group_prefixes(
    ids: Tensor | np.ndarray,
    cu_seqlens: Tensor | np.ndarray,
    prefix_lengths: int | Tensor | np.ndarray,
    backend: str | None = None,
) -> PrefixGroups:
    """Group B packed rows that begin with an equal prefix.

    ids             [N] token ids; row i is ids[cu_seqlens[i] : cu_seqlens[i + 1]]
    prefix_lengths  [B] length of each row's prompt: rows share a group when their prompts are equal
                    in full. Or a number: rows that agree on that many first ids share a group, and
                    a shorter row counts as a prefix in full

    Ids are always compared, never a hash alone. `backend` is "cpu" (the extension, which releases
    the GIL) or "reference", with equal results. Tensors on a GPU are copied to the host.

    Raises ValueError for cu_seqlens that do not rise from 0 to N, arguments that are not whole
    numbers in one dimension, and a prefix that is negative or longer than its row (which is named).
    """
    rows = checked_rows((ids, cu_seqlens), "rows")
    lengths = np.diff(rows.cu_seqlens)
    prefix = _prefixes(prefix_lengths, lengths)
    run = backends.choose("group_prefixes", "cpu", backend)
    group_ids, order, cu_groups, shared = run(*rows, prefix)
    return PrefixGroups(
        group_ids=group_ids,
        order=order,
        cu_groups=cu_groups,
        prefix=prefix[order[cu_groups[:-1]]],
        shared=shared,
        lengths=lengths,
    )


def _prefixes(prefix_lengths: int | Tensor | np.ndarray, lengths: np.ndarray) -> np.ndarray:
    if isinstance(prefix_lengths, int):
        if prefix_lengths < 0:
            raise ValueError(f"prefix_lengths cannot be negative, got {prefix_lengths}")
        return np.minimum(lengths, prefix_lengths)
    prefix = whole_numbers(prefix_lengths, "prefix_lengths").astype(np.int64, copy=False)
    if prefix.shape != lengths.shape:
        raise ValueError(f"prefix_lengths must be [{len(lengths)}], got {prefix.shape}")
    wrong = np.flatnonzero((prefix < 0) | (prefix > lengths))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"row {row} has {lengths[row]} ids and a prefix of {prefix[row]}")
    return prefix


def _cpu(
    ids: np.ndarray, cu_seqlens: np.ndarray, prefix: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from visa_kernels import _C

    return _C.prefix_groups(ids, cu_seqlens, prefix)


backends.register(
    "group_prefixes",
    backends.Backend(name="cpu", function=_cpu, why_not=backends.why_no_extension),
    backends.Backend(name="reference", function=reference.group_prefixes),
)
