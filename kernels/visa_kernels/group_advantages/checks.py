"""Argument checks of `group_advantages`, shared with the ops that compute advantages inside."""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = ("group", "batch", "none")


def check_groups(
    rewards: Tensor, group_ids: Tensor | None, group_size: int | None, mask: Tensor | None
) -> None:
    """Raise ValueError unless the rewards are [B] and exactly one way of grouping fits them."""
    if rewards.ndim != 1 or not rewards.is_floating_point():
        raise ValueError(
            f"rewards must be [B] and floating point, got {tuple(rewards.shape)} {rewards.dtype}"
        )
    if (group_ids is None) == (group_size is None):
        raise ValueError("give either group_ids or group_size, one of them")
    if group_ids is not None and group_ids.shape != rewards.shape:
        raise ValueError(
            "rewards and group_ids must both be [B], "
            f"got {tuple(rewards.shape)} and {tuple(group_ids.shape)}"
        )
    if group_ids is not None and (group_ids.is_floating_point() or group_ids.is_complex()):
        raise ValueError(f"group_ids must be integers, got {group_ids.dtype}")
    if group_size is not None and (group_size < 1 or len(rewards) % group_size != 0):
        raise ValueError(
            f"group_size must divide the number of rows, {len(rewards)}, got {group_size}"
        )
    if mask is not None and (mask.shape != rewards.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"the mask of rewards must be bool {tuple(rewards.shape)}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )


def refuse_non_finite(rewards_B: Tensor, mask_B: Tensor | None) -> None:
    """Raise ValueError that names the counted rows whose reward is NaN or infinite."""
    bad_B = ~torch.isfinite(rewards_B)
    if mask_B is not None:
        bad_B = bad_B & mask_B
    if bool(bad_B.any()):
        raise ValueError(non_finite_complaint(rewards_B, bad_B))


def non_finite_complaint(rewards_B: Tensor, bad_B: Tensor) -> str:
    """What to tell a user, with the rows and their rewards."""
    rows = bad_B.nonzero().flatten().tolist()
    shown = ", ".join(f"{row} ({rewards_B[row].item()})" for row in rows[:8])
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return f"rewards must be finite: {len(rows)} of {len(rewards_B)} are not, rows {shown}{more}"
