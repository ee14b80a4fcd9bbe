"""Log-probability and entropy of chosen tokens in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor, ids: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [...] and entropies [...] or None; see `op.token_logprobs`."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = logits.to(dtype) / temperature
    lse = scores.logsumexp(-1)
    logprobs = scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - lse
    return logprobs, _entropy(scores, lse) if with_entropy else None


def _entropy(scores: Tensor, lse: Tensor) -> Tensor:
    """H = logsumexp - sum p * score; a score of -inf has p = 0 and adds nothing."""
    p = (scores - lse.unsqueeze(-1)).exp()
    return lse - (p * scores.masked_fill(scores == -torch.inf, 0.0)).sum(-1)
