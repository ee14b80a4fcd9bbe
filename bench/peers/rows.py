"""Packed rows to padded ones and back: peers take [B, T] where our ops take [N]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def grid(cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Index [B, T] of each padded place in the packed tokens, and the mask [B, T] of real ones."""
    starts_B, lengths_B = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    longest = int(lengths_B.max()) if len(lengths_B) else 0
    step_T = torch.arange(longest, device=cu_seqlens.device)
    mask_BT = step_T < lengths_B[:, None]
    return torch.where(mask_BT, starts_B[:, None] + step_T, 0), mask_BT


def pad(x_N: Tensor | None, index_BT: Tensor, mask_BT: Tensor) -> Tensor | None:
    """[N, ...] to [B, T, ...], zeros where there is no token."""
    if x_N is None:
        return None
    wide = mask_BT.reshape(*mask_BT.shape, *[1] * (x_N.ndim - 1))
    return torch.where(wide, x_N[index_BT], 0)


def padded_inputs(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    """Inputs of an op with the named tensors padded, plus `mask` [B, T], int64.

    The op's own `mask` [N], where it has one, is taken into that of the padded rows.
    """
    index_BT, mask_BT = grid(inputs["cu_seqlens"])
    own = inputs.get("mask")
    counted_BT = mask_BT if own is None else mask_BT & own[index_BT]
    made = {name: pad(inputs.get(name), index_BT, mask_BT) for name in names}
    return {**inputs, **made, "mask": counted_BT.long(), "real": mask_BT}
