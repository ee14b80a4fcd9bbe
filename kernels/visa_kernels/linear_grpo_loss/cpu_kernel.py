"""Row kernels of a head with its policy loss in the C++ extension; no autograd."""

from __future__ import annotations

from torch import Tensor

from visa_kernels.linear_grpo_loss.plan import Bounds, Terms
from visa_kernels.linear_logprobs.cpu_kernel import (
    address,
    chunk_arguments,
    gradient,
    statistics,
)
from visa_kernels.linear_logprobs.head import Head, Stats

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
    from visa_kernels import _C

    _C.head_policy(
        *chunk_arguments(product_nV, ids_n, head, stats_n),
        terms_n.old_logprobs.data_ptr(),
        terms_n.advantages.data_ptr(),
        terms_n.policy_scale.data_ptr(),
        address(terms_n.ref_logprobs),
        address(terms_n.kl_scale),
        bounds.low,
        bounds.high,
        bounds.dual,
        bounds.cispo,
        dlogprobs_n.data_ptr(),
    )
