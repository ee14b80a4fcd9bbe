"""`grpo_loss` on the C++ extension."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visa_kernels.group_advantages.checks import refuse_non_finite
from visa_kernels.grpo_loss.checks import row_bounds_complaint
from visa_kernels.grpo_loss.job import Job


def grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, scores: Tensor, cu_seqlens: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dloss/dlogprobs [N] and metrics, all float32.

    Raises ValueError where cu_seqlens does not rise from 0 to N, and for rewards not finite.
    """
    from visa_kernels import _C

    job = Job(logprobs, old_logprobs, scores, cu_seqlens, *others)
    wrong = _C.grpo_loss(job.packed)
    if wrong == "cu_seqlens":
        raise ValueError(row_bounds_complaint(cu_seqlens, logprobs.numel()))
    if wrong:
        refuse_non_finite(scores, job.reward_mask)
        raise ValueError("rewards must be finite in float32")
    return job.results
