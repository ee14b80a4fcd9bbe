"""Argument checks of `grpo_loss`: each raises ValueError with a sentence for users."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels.group_advantages import checks as group_checks
from visa_kernels.grpo_loss import reference


def scores_of(advantages: Tensor | None, rewards: Tensor | None) -> Tensor:
    """Whichever of the two was given."""
    if (advantages is None) == (rewards is None):
        raise ValueError("grpo_loss takes either advantages or rewards, one of them")
    return advantages if rewards is None else rewards


def check_loss_type(loss_type: str) -> None:
    _check_in("loss_type", loss_type, tuple(reference.LOSS_TYPES))


def check_names(
    loss_type: str,
    sampler_correction: str,
    sequence_weight: str,
    rewards: Tensor | None,
    advantage_scale: str,
    corrections: tuple[str, ...],
) -> None:
    check_loss_type(loss_type)
    _check_in("sampler_correction", sampler_correction, corrections)
    _check_in("sequence_weight", sequence_weight, tuple(reference.SEQUENCE_WEIGHTS))
    if rewards is not None:
        _check_in("advantage_scale", advantage_scale, group_checks.SCALES)


def check_needs(
    sampler_correction: str,
    sampler_logprobs: Tensor | None,
    kl_beta: float,
    ref_logprobs: Tensor | None,
) -> None:
    if sampler_correction != "none" and sampler_logprobs is None:
        raise ValueError(f"sampler_correction {sampler_correction!r} needs sampler_logprobs")
    if kl_beta != 0 and ref_logprobs is None:
        raise ValueError(f"kl_beta {kl_beta} needs ref_logprobs")


def check_bounds(
    loss_type: str, clip_dual: float | None, correction_low: float, correction_cap: float
) -> None:
    if clip_dual is not None and not clip_dual > 1:
        raise ValueError(f"clip_dual must be greater than 1, got {clip_dual}")
    if clip_dual is not None and loss_type == "cispo":
        raise ValueError("clip_dual is not for cispo, whose weights are bounded by clip_high")
    if not 0 <= correction_low <= correction_cap:
        raise ValueError(
            "correction_low and correction_cap must be 0 <= low <= cap, "
            f"got {correction_low} and {correction_cap}"
        )


def check_shapes(
    logprobs: Tensor,
    cu_seqlens: Tensor,
    per_row: dict[str, Tensor],
    per_token: dict[str, Tensor | None],
) -> None:
    if logprobs.ndim != 1:
        raise ValueError(f"logprobs must be [N], got {tuple(logprobs.shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must be integers, got {cu_seqlens.dtype}; int32 or int64")
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 1:
        raise ValueError(f"cu_seqlens must be [B + 1], got {tuple(cu_seqlens.shape)}")
    rows = cu_seqlens.numel() - 1
    for name, scores in per_row.items():
        if scores.shape != (rows,):
            raise ValueError(
                f"{name} must be [{rows}], one per row of cu_seqlens, got {tuple(scores.shape)}"
            )
    for name, other in per_token.items():
        if other is not None and other.shape != logprobs.shape:
            raise ValueError(
                f"{name} must have the shape of logprobs, {tuple(logprobs.shape)}, "
                f"got {tuple(other.shape)}"
            )


def check_groups(
    rewards: Tensor | None,
    group_size: int | None,
    group_ids: Tensor | None,
    reward_mask: Tensor | None,
) -> None:
    if rewards is not None:
        group_checks.check_groups(rewards, group_ids, group_size, reward_mask)
        return
    given = {"group_size": group_size, "group_ids": group_ids, "reward_mask": reward_mask}
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise ValueError(f"{', '.join(extra)} belong to rewards, but advantages were given")


def check_values(
    scores: Tensor,
    cu_seqlens: Tensor,
    tokens: int,
    advantage_scale: str,
    reward_mask: Tensor | None,
) -> None:
    """Values, on CPU alone: row bounds that rise from 0 to N, and finite rewards."""
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool(rises(cu_seqlens, tokens)):
        raise ValueError(row_bounds_complaint(cu_seqlens, tokens))
    if advantage_scale != "given":
        group_checks.refuse_non_finite(scores, reward_mask)


def rises(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Whether cu_seqlens rises from 0 to the number of tokens."""
    ends = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == tokens)
    return ends & (cu_seqlens.diff() >= 0).all()


def row_bounds_complaint(cu_seqlens: Tensor, tokens: int) -> str:
    """What to tell a user whose row bounds do not fit."""
    shown = cu_seqlens[:8].tolist()
    return (
        f"cu_seqlens must rise from 0 to the number of tokens, {tokens}, "
        f"got {shown}{' ...' if len(cu_seqlens) > 8 else ''}"
    )


def _check_in(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
