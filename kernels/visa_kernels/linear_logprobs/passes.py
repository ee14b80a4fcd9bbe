"""The passes over chunks of tokens: forward, and backward with the logits made once more.

FLOPs of a matrix product with the head: 2 T D V. Forward takes one, backward three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from visa_kernels.linear_logprobs import chunks, gemm
from visa_kernels.linear_logprobs.head import Head, Rows, Stats


@dataclass(kw_only=True)
class Gradients:
    """Where a pass leaves its gradients; None for those that nobody wants."""

    dhidden: Tensor | None
    """[T, D] in the type of hidden; rows that a pass leaves out must be 0 already."""
    dweight: Tensor | None
    """[V, D] float32"""
    dbias: Tensor | None
    """[V] float32"""
    started: bool
    """Whether dweight holds a sum to add to; otherwise its memory is still to be written."""
    weight_alpha: float = 1.0
    """dweight takes this many times what the dlogits give."""

    @classmethod
    def empty(
        cls,
        hidden: Tensor,
        head: Head,
        needs: tuple[bool, bool, bool],
        *,
        every_row: bool,
        accumulate_into: Tensor | None = None,
        weight_alpha: float = 1.0,
    ) -> Gradients:
        """Memory for the gradients of hidden, weight and bias that `needs` names."""
        dweight = accumulate_into
        if dweight is None and needs[1]:
            dweight = torch.empty_like(
                head.weight, dtype=torch.float32, memory_format=torch.contiguous_format
            )
        dhidden = None
        if needs[0]:
            shape = hidden.shape
            dhidden = hidden.new_empty(shape) if every_row else hidden.new_zeros(shape)
        return cls(
            dhidden=dhidden,
            dweight=dweight,
            dbias=hidden.new_zeros(head.vocabulary, dtype=torch.float32) if needs[2] else None,
            started=accumulate_into is not None,
            weight_alpha=weight_alpha,
        )

    @property
    def wanted(self) -> bool:
        return not (self.dhidden is None and self.dweight is None and self.dbias is None)

    def add(
        self, dlogits_nV: Tensor, hidden_nD: Tensor, head: Head, rows: slice | Tensor
    ) -> None:
        """Add a chunk's share; `rows` are its tokens' places in hidden."""
        if self.dweight is not None:
            beta = 1 if self.started else 0
            gemm.add_weight_gradient(self.dweight, dlogits_nV, hidden_nD, self.weight_alpha, beta)
            self.started = True
        if self.dbias is not None:
            self.dbias.add_(dlogits_nV.sum(0, dtype=torch.float32))
        if self.dhidden is not None and isinstance(rows, slice):
            gemm.hidden_gradient(dlogits_nV, head.weight, self.dhidden[rows])
        elif self.dhidden is not None:
            part = torch.empty_like(hidden_nD)
            gemm.hidden_gradient(dlogits_nV, head.weight, part)
            self.dhidden.index_copy_(0, rows, part)

    def finish(self) -> None:
        """Zero what no chunk has written."""
        if self.dweight is not None and not self.started:
            self.dweight.zero_()
            self.started = True


def selected(
    index: Tensor | None, tokens: int, size: int
) -> Iterator[tuple[slice, slice | Tensor]]:
    """Chunks of the tokens in `index` (None: the first `tokens`): their place in it, and in T."""
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        yield part, part if index is None else index[part]


def forward(
    rows: Rows, hidden: Tensor, head: Head, ids: Tensor, index: Tensor | None, size: int
) -> Stats:
    """Statistics of the tokens in `index` (None: all), in its order; `ids` are in that order too.

    size  tokens of a chunk; 0 lets `chunks.chunk_tokens` choose
    """
    tokens = len(ids)
    stats = Stats.empty(tokens, hidden)
    size = size or chunks.chunk_tokens(tokens, head.weight, hidden.element_size())
    logits = chunks.buffer(min(size, tokens), head.weight, hidden.dtype)
    for part, places in selected(index, tokens, size):
        product = logits[: part.stop - part.start]
        gemm.logits(hidden[places], head.weight, product)
        rows.statistics(product, ids[part], head, stats[part])
    return stats


def backward(
    rows: Rows,
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    stats: Stats,
    dlogprobs: Tensor,
    dentropy: Tensor | None,
    index: Tensor | None,
    size: int,
    gradients: Gradients,
) -> None:
    """Add the gradients of the tokens in `index` (None: all); the rest is in its order."""
    tokens = len(ids)
    size = size or chunks.chunk_tokens(tokens, head.weight, hidden.element_size())
    logits = chunks.buffer(min(size, tokens), head.weight, hidden.dtype)
    for part, places in selected(index, tokens, size):
        product = logits[: part.stop - part.start]
        hidden_nD = hidden[places]
        gemm.logits(hidden_nD, head.weight, product)
        slope = None if dentropy is None else dentropy[part]
        rows.gradient(product, ids[part], head, stats[part], dlogprobs[part], slope)
        gradients.add(product, hidden_nD, head, places)
    gradients.finish()
