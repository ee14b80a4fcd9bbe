"""`grpo_loss` on the C++ extension; where rewards come in, their advantages are computed first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visa_kernels.group_advantages import checks as group_checks
from visa_kernels.group_advantages import cpu_kernel as group_kernel
from visa_kernels.grpo_loss.checks import row_bounds_complaint
from visa_kernels.grpo_loss.job import Job


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    scores: Tensor,
    cu_seqlens: Tensor,
    *,
    group_ids: Tensor | None,
    reward_mask: Tensor | None,
    group_size: int,
    advantage_scale: str,
    advantage_eps: float,
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dloss/dlogprobs [N] and metrics, all float32.

    Raises ValueError where cu_seqlens does not rise from 0 to N, and for rewards not finite.
    """
    from visa_kernels import _C

    if advantage_scale != "given":
        group_checks.refuse_non_finite(scores, reward_mask)
        scores = group_kernel.group_advantages(
            scores, group_ids, reward_mask, group_size, advantage_scale, advantage_eps
        )
    job = Job(
        logprobs,
        old_logprobs,
        scores.to(torch.float32),
        cu_seqlens,
        group_ids=None,
        reward_mask=None,
        group_size=0,
        advantage_scale="given",
        advantage_eps=0.0,
        **others,
    )
    if not _C.grpo_loss(job.packed):
        raise ValueError(row_bounds_complaint(cu_seqlens, len(logprobs)))
    return job.results
