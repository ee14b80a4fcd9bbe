"""Checks of the arguments that packed and shared-prefix attention have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

MAX_HEAD_DIM = 256
"""What the tiles of a GPU hold."""


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless q is [N, H, D], k and v are [N, Hk, D] and H a multiple of Hk."""
    shapes = f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[::2] != k.shape[::2]:
        raise ValueError(f"q must be [N, H, D], k and v [N, Hk, D], {shapes}")
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"the query heads H must be a multiple of the key heads Hk, {shapes}")
    if not 1 <= q.shape[-1] <= MAX_HEAD_DIM:
        raise ValueError(f"head sizes D from 1 to {MAX_HEAD_DIM} are supported, {shapes}")
    if q.dtype not in FLOATS or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            "q, k and v must have one floating type of 16, 32 or 64 bits, "
            f"got {q.dtype}, {k.dtype} and {v.dtype}"
        )


def check_bounds(name: str, bounds: Tensor, total: int, device: torch.device) -> None:
    """Raise ValueError unless `bounds` is [n + 1] whole numbers that rise from 0 to `total`.

    Values are looked at where that costs no read-back: on the CPU and outside a compiled graph.
    """
    if bounds.ndim != 1 or not len(bounds) or bounds.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} must be int32 or int64 of shape [n + 1], "
            f"got {bounds.dtype} of shape {tuple(bounds.shape)}"
        )
    if bounds.device != device:
        raise ValueError(f"{name} is on {bounds.device}, but q is on {device}")
    if bounds.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values = bounds.tolist()
    if values[0] != 0 or values[-1] != total or values != sorted(values):
        raise ValueError(f"{name} must rise from 0 to {total}, got {values[:8]} ... {values[-1]}")


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """1 / sqrt(D) where no scale is given; ValueError for one that is not above 0."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    return float(scale)
