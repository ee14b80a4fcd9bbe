"""Row kernels of a head with its policy loss in plain torch: those of the head, and the terms."""

from __future__ import annotations

from torch import Tensor

from visa_kernels.linear_grpo_loss.plan import Bounds, Terms, token_slopes
from visa_kernels.linear_logprobs.head import Head, Stats
from visa_kernels.linear_logprobs.torch_rows import gradient, statistics

__all__ = ["gradient", "policy", "statistics"]


def policy(
    product_nV: Tensor,
    ids_n: Tensor,
    head: Head,
    stats_n: Stats,
    terms_n: Terms,
    bounds: Bounds,
    dlogprobs_n: Tensor,
) -> None:
    """See `passes.PolicyRows.policy`."""
    statistics(product_nV, ids_n, head, stats_n)
    dlogprobs_n.copy_(token_slopes(stats_n.logprobs, terms_n, bounds))
    gradient(product_nV, ids_n, head, stats_n, dlogprobs_n, None)
