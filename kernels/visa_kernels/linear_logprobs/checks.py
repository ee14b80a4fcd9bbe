"""Argument checks that the two ops of the loss head share; ValueError with a sentence for users."""

from __future__ import annotations

import torch
from torch import Tensor


def check_head(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    chunk_tokens: int | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden must be [T, D] and weight [V, D], "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if ids.shape != hidden.shape[:1]:
        raise ValueError(f"ids must be [{len(hidden)}], one per token, got {tuple(ids.shape)}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids must be int64 or int32, got {ids.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{len(weight)}], got {tuple(bias.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be above 0, or None for none, got {softcap}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")


def check_one_dtype(hidden: Tensor, weight: Tensor) -> None:
    """Kernels take hidden and weight in the same type."""
    if hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden and weight must have one type, got {hidden.dtype} and {weight.dtype}"
        )


def check_ids(ids: Tensor, vocabulary: int, mask: Tensor | None = None) -> None:
    """Ids in [0, V), on CPU alone: a GPU would have to wait, and gives NaN for such a token."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    wrong = (ids < 0) | (ids >= vocabulary)
    if mask is not None:
        wrong &= mask.bool()
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"ids must be in [0, {vocabulary}), got {int(ids[first])} at token {first}"
        )


def check_accumulate_into(accumulate_into: Tensor | None, weight: Tensor) -> None:
    """Memory that dweight is added to."""
    if accumulate_into is None:
        return
    fits = accumulate_into.shape == weight.shape and accumulate_into.device == weight.device
    wide = accumulate_into.dtype == torch.float32 or weight.dtype == torch.float64
    if not fits or not wide or not accumulate_into.is_contiguous():
        raise ValueError(
            f"accumulate_into must be contiguous, float32, of the weight's shape "
            f"{tuple(weight.shape)} and on its device, got {tuple(accumulate_into.shape)} of "
            f"{accumulate_into.dtype} on {accumulate_into.device}"
        )
    if accumulate_into.requires_grad:
        raise ValueError("accumulate_into must not require a gradient itself")
