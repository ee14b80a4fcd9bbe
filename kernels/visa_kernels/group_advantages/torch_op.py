"""The kernels of `group_advantages` as one torch operator, for compile and export."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels.group_advantages import checks


def run(
    rewards_B: Tensor,
    group_ids_B: Tensor | None,
    *,
    group_size: int,
    mask_B: Tensor | None,
    scale: str,
    eps: float,
    check: bool,
    backend: str,
) -> Tensor:
    """Call the operator; same arguments as the reference, the check, and the kernel's name."""
    return _advantages(rewards_B, group_ids_B, mask_B, group_size, scale, eps, check, backend)


@torch.library.custom_op("visa_kernels::group_advantages", mutates_args=())
def _advantages(
    rewards: Tensor,
    group_ids: Tensor | None,
    mask: Tensor | None,
    group_size: int,
    scale: str,
    eps: float,
    check: bool,
    backend: str,
) -> Tensor:
    if check:
        checks.refuse_non_finite(rewards, mask)
    if backend == "cpu":
        from visa_kernels.group_advantages import cpu_kernel as kernel
    else:
        from visa_kernels.group_advantages import triton_kernel as kernel
    return kernel.group_advantages(rewards, group_ids, mask, group_size, scale, eps)


@_advantages.register_fake
def _(
    rewards: Tensor,
    group_ids: Tensor | None,
    mask: Tensor | None,
    group_size: int,
    scale: str,
    eps: float,
    check: bool,
    backend: str,
) -> Tensor:
    return rewards.new_empty(rewards.shape, dtype=_dtype(rewards))


def _dtype(rewards: Tensor) -> torch.dtype:
    return torch.float64 if rewards.dtype == torch.float64 else torch.float32
