"""The loss head in plain torch, with the logits of all tokens at once: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels.token_logprobs.reference import token_logprobs


def head_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """Logits [T, V] in float32, or float64 where either input is; see `op.linear_logprobs`."""
    wide = torch.float64 in (hidden.dtype, weight.dtype)
    dtype = torch.float64 if wide else torch.float32
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    if bias is not None:
        logits = logits + bias.to(dtype)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [T] and entropies [T]; see `op.linear_logprobs`."""
    logits = head_logits(hidden, weight, bias, softcap)
    logprobs, entropy = token_logprobs(logits, ids, temperature, True)
    assert entropy is not None
    return logprobs, entropy
