"""Token rows one behind the other, without padding, in batches of a token budget.

Legend: B rows, N tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from visa_kernels import pack_to_budget

CPU_NUMBERS = 2**19
"""Hidden states of a batch on a CPU, tokens times width: enough work for the matrix products, and
activations stay in cache.
"""
CPU_TOKENS = (256, 4096)
"""Least and most tokens of such a batch."""
GPU_TOKENS = 32_768


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """ids_N, position_N, types_N, cu_seqlens [B + 1], int64: row b is tokens cu[b] : cu[b + 1]."""

    ids_N: torch.Tensor
    position_N: torch.Tensor
    types_N: torch.Tensor | None
    cu_seqlens: torch.Tensor
    longest: int

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None = None,
        *,
        first_position: int = 0,
        device: torch.device | str = "cpu",
    ) -> PackedRows:
        """Rows of at least one token each; positions count from `first_position` in each."""
        lengths = torch.tensor([len(row) for row in rows])
        cu = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        start_N = cu[:-1].repeat_interleave(lengths)
        position_N = torch.arange(len(start_N)) - start_N + first_position
        types_N = None if types is None else torch.tensor(list(chain.from_iterable(types)))
        return cls(
            ids_N=torch.tensor(list(chain.from_iterable(rows))).to(device),
            position_N=position_N.to(device),
            types_N=None if types_N is None else types_N.to(device),
            cu_seqlens=cu.to(device),
            longest=int(lengths.max()),
        )

    def with_types(self, types_N: torch.Tensor) -> PackedRows:
        """The same rows with other token types."""
        return replace(self, types_N=types_N)

    @property
    def first_B(self) -> torch.Tensor:
        """Index of each row's first token."""
        return self.cu_seqlens[:-1]

    @property
    def row_N(self) -> torch.Tensor:
        """Which row each token is in."""
        lengths = self.cu_seqlens.diff()
        index_B = torch.arange(len(lengths), device=lengths.device)
        return index_B.repeat_interleave(lengths, output_size=len(self.ids_N))


def token_batches(lengths: Sequence[int], device: torch.device, width: int) -> list[list[int]]:
    """Indices of rows in batches of at most a token budget, or of the longest row's length.

    width  of the hidden states
    """
    if not lengths:
        return []
    least, most = CPU_TOKENS
    budget = min(max(CPU_NUMBERS // width, least), most) if device.type == "cpu" else GPU_TOKENS
    return pack_to_budget(lengths, max(budget, max(lengths)))
