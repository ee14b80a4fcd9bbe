"""The head as the chunked passes see it, and what every kind of row kernel offers them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Shapes in names: T tokens, n tokens of a chunk, D hidden size, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class Head:
    """logits = softcap * tanh((hidden @ weight.T + bias) / softcap), then / temperature."""

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V] float32, contiguous"""
    temperature: float
    softcap: float
    """0 for none"""

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What is kept of each token's logits, all float32 [T] (or the [n] of a chunk).

    With x the logits before the temperature: `shift` is near the largest x, and `log_sum` is
    log(sum(exp((x - shift) / temperature))). They stay apart because their sum, logsumexp, loses
    all digits of a probability where logits are large.
    """

    logprobs: Tensor
    entropy: Tensor
    shift: Tensor
    log_sum: Tensor

    @classmethod
    def empty(cls, tokens: int, like: Tensor) -> Stats:
        """Uninitialised, contiguous, on the device of `like`.

        All four start at multiples of 16 bytes: Triton builds a kernel anew for other pointers.
        """
        memory = like.new_empty((4, -(-tokens // 4) * 4), dtype=torch.float32)
        logprobs, entropy, shift, log_sum = memory[:, :tokens].unbind()
        return cls(logprobs=logprobs, entropy=entropy, shift=shift, log_sum=log_sum)

    def __getitem__(self, part: slice | Tensor) -> Stats:
        return Stats(
            logprobs=self.logprobs[part],
            entropy=self.entropy[part],
            shift=self.shift[part],
            log_sum=self.log_sum[part],
        )


class Rows(Protocol):
    """Row kernels: they read the matrix product of a chunk, [n, V], its rows contiguous.

    Bias, softcap and temperature are applied as the rows are read. `ids` outside [0, V) give NaN.
    """

    def statistics(self, product_nV: Tensor, ids_n: Tensor, head: Head, stats_n: Stats) -> None:
        """Fill the statistics of each row."""

    def gradient(
        self,
        product_nV: Tensor,
        ids_n: Tensor,
        head: Head,
        stats_n: Stats,
        dlogprobs_n: Tensor,
        dentropy_n: Tensor | None,
    ) -> None:
        """Replace each row by the gradient of its product: exact zeros where both inputs are 0."""
