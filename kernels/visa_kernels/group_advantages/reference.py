"""Group advantages in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards_B: Tensor, group_ids_B: Tensor, scale: str, eps: float) -> Tensor:
    """Advantages [B]; see `op.group_advantages`.

    Rewards are first shifted by their group's smallest, which changes no advantage and makes a
    group of equal rewards give exact zeros: such rows can then be left out of the backward pass.
    """
    dtype = torch.float64 if rewards_B.dtype == torch.float64 else torch.float32
    _, group_B, count_G = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    raw_B = rewards_B.to(torch.float64)
    lowest_G = raw_B.new_zeros(len(count_G)).scatter_reduce(
        0, group_B, raw_B, "amin", include_self=False
    )
    shifted_B = raw_B - lowest_G[group_B]
    mean_G = shifted_B.new_zeros(len(count_G)).index_add(0, group_B, shifted_B) / count_G
    centred_B = shifted_B - mean_G[group_B]
    if scale == "group":
        centred_B = centred_B / (_std_per_group(centred_B, group_B, count_G)[group_B] + eps)
    elif scale == "batch" and len(raw_B) > 1:
        centred_B = centred_B / (raw_B.std() + eps)
    return centred_B.to(dtype)


def _std_per_group(centred_B: Tensor, group_B: Tensor, count_G: Tensor) -> Tensor:
    """Sample standard deviation of each group; 0 for a group of one."""
    squares_G = centred_B.new_zeros(len(count_G)).index_add(0, group_B, centred_B.square())
    return (squares_G / (count_G - 1).clamp(min=1)).sqrt()
