"""Log-probability and entropy of chosen tokens in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor, ids: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [...] and entropies [...] or None; see `op.token_logprobs`."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # log_softmax subtracts the maximum first: x - logsumexp(x) loses all digits where x is large.
    every = (logits.to(dtype) / temperature).log_softmax(-1)
    logprobs = every.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return logprobs, _entropy(every) if with_entropy else None


def _entropy(logp: Tensor) -> Tensor:
    """H = -sum p log p; a token that cannot be drawn has p = 0 and adds nothing."""
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)
