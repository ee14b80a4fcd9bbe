"""Group advantages in plain torch: the specification. Reads nothing back from the device."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(
    rewards_B: Tensor,
    group_ids_B: Tensor | None,
    *,
    group_size: int,
    mask_B: Tensor | None,
    scale: str,
    eps: float,
) -> Tensor:
    """Advantages [B]; see `op.group_advantages`, which has checked the arguments.

    Rewards are first shifted by their group's smallest, which changes no advantage and makes a
    group of equal rewards give exact zeros: such rows can then be left out of the backward pass.
    """
    dtype = torch.float64 if rewards_B.dtype == torch.float64 else torch.float32
    group_B = _group_index(rewards_B, group_ids_B, group_size)
    counted_B = torch.ones_like(group_B, dtype=torch.bool) if mask_B is None else mask_B
    raw_B = torch.where(counted_B, rewards_B.to(torch.float64), 0.0)
    one_B = counted_B.to(torch.float64)

    def sum_of_group(x_B: Tensor) -> Tensor:
        return torch.zeros_like(raw_B).index_add(0, group_B, x_B * one_B)[group_B]

    count_B = sum_of_group(torch.ones_like(raw_B)).clamp(min=1)
    shifted_B = torch.where(counted_B, raw_B - _lowest_of_group(raw_B, counted_B, group_B), 0.0)
    sum_B = sum_of_group(shifted_B)
    # A reward that is not finite makes its group's sum so, and 0 * sum NaN.
    centred_B = shifted_B - sum_B / count_B + 0 * sum_B
    if scale == "group":
        variance_B = sum_of_group(centred_B.square()) / (count_B - 1).clamp(min=1)
        centred_B = centred_B / (variance_B.sqrt() + eps)
    elif scale == "batch":
        centred_B = centred_B / (_std(raw_B, one_B) + eps)
    return torch.where(counted_B, centred_B, 0.0).to(dtype)


def _group_index(rewards_B: Tensor, group_ids_B: Tensor | None, group_size: int) -> Tensor:
    """Index [B] of each row's group, below B; how many there are stays on the device."""
    if group_ids_B is None:
        return torch.arange(len(rewards_B), device=rewards_B.device) // group_size
    sorted_ids, order_B = group_ids_B.sort()
    rank_B = torch.zeros_like(order_B)
    rank_B[1:] = (sorted_ids[1:] != sorted_ids[:-1]).cumsum(0)
    return torch.empty_like(order_B).scatter_(0, order_B, rank_B)


def _lowest_of_group(raw_B: Tensor, counted_B: Tensor, group_B: Tensor) -> Tensor:
    """Smallest counted reward of each row's group [B]; 0 in a group without any."""
    padded_B = torch.where(counted_B, raw_B, torch.inf)
    lowest_G = torch.full_like(raw_B, torch.inf).scatter_reduce(0, group_B, padded_B, "amin")
    return lowest_G[group_B]


def _std(x_B: Tensor, one_B: Tensor) -> Tensor:
    """Sample standard deviation over counted rows; 0 for fewer than two."""
    count = one_B.sum()
    mean = (x_B * one_B).sum() / count.clamp(min=1)
    return (((x_B - mean) * one_B).square().sum() / (count - 1).clamp(min=1)).sqrt()
