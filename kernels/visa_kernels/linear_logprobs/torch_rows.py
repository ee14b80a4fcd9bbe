"""Row kernels of a loss head in plain torch: any device, memory bounded by the chunk.

Slower than the fused ones, which read a row twice and write it once; these make a few copies of a
chunk in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels.linear_logprobs.head import Head, Stats


def statistics(product_nV: Tensor, ids_n: Tensor, head: Head, stats_n: Stats) -> None:
    """See `head.Rows.statistics`."""
    logits, _ = capped_logits(product_nV, head)
    shift = logits.amax(-1, keepdim=True)
    # A row of -inf alone has no distribution: 0 / 0 gives the NaN that torch gives.
    scaled = (logits - shift.masked_fill(shift == -torch.inf, 0.0)) / head.temperature
    weights = scaled.exp()
    total = weights.sum(-1)
    stats_n.shift.copy_(shift.squeeze(-1))
    stats_n.log_sum.copy_(total.log())
    # A token that cannot be drawn has weight 0 and adds nothing to the mean of the logits.
    mean = (weights * scaled.masked_fill(weights == 0, 0.0)).sum(-1) / total
    stats_n.entropy.copy_(stats_n.log_sum - mean)
    known = (ids_n >= 0) & (ids_n < logits.shape[-1])
    chosen = logits.gather(-1, ids_n.where(known, 0).unsqueeze(-1)).squeeze(-1)
    logprobs = (chosen - stats_n.shift) / head.temperature - stats_n.log_sum
    stats_n.logprobs.copy_(logprobs.where(known, torch.nan))


def gradient(
    product_nV: Tensor,
    ids_n: Tensor,
    head: Head,
    stats_n: Stats,
    dlogprobs_n: Tensor,
    dentropy_n: Tensor | None,
) -> None:
    """See `head.Rows.gradient`."""
    logits, slope = capped_logits(product_nV, head)
    scaled = (logits - stats_n.shift.unsqueeze(-1)) / head.temperature
    logprobs = scaled - stats_n.log_sum.unsqueeze(-1)
    probs = logprobs.exp()
    dlogits = -dlogprobs_n.unsqueeze(-1) * probs
    known = (ids_n >= 0) & (ids_n < logits.shape[-1])
    dlogits.scatter_add_(
        -1, ids_n.where(known, 0).unsqueeze(-1), (dlogprobs_n * known).unsqueeze(-1)
    )
    active = dlogprobs_n != 0
    if dentropy_n is not None:
        surplus = logprobs.masked_fill(probs == 0, 0.0) + stats_n.entropy.unsqueeze(-1)
        dlogits -= dentropy_n.unsqueeze(-1) * probs * surplus
        active |= dentropy_n != 0
    dlogits *= slope
    product_nV.copy_(dlogits.where(active.unsqueeze(-1), 0.0))


def capped_logits(product_nV: Tensor, head: Head) -> tuple[Tensor, Tensor | float]:
    """Logits before the temperature in float32; the slope in the product of those after it."""
    logits = product_nV.float()
    if head.bias is not None:
        logits = logits + head.bias
    if not head.softcap:
        return logits, 1.0 / head.temperature
    bent = torch.tanh(logits / head.softcap)
    return bent * head.softcap, (1 - bent.square()) / head.temperature
