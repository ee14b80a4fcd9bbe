"""Reward scores in plain torch: the specification.

Legend: B completions, K value dimensions, C labels, P pieces, S sentences, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

ZERO_NORM = 1e-8
"""Vectors no longer than this have no direction."""

NON_FINITE = {"values": 1, "fwd": 2, "bwd": 4, "targets": 8, "penalty": 16, "reward": 32}
"""Bits of `RewardScores.non_finite`: what of a row was NaN or infinite; `reward` where all of its
inputs were finite.
"""

OUTPUTS = ("reward", "advantage", "cosine", "l2", "fwd", "bwd", "semantic")
"""Rows of the scores that every backend returns."""


def reward_scores(
    *,
    values: Tensor,
    value_rows: Tensor | None,
    targets: Tensor,
    fwd: Tensor,
    fwd_sentences: Tensor | None,
    fwd_chunks: Tensor | None,
    fwd_rows: Tensor | None,
    bwd: Tensor,
    bwd_sentences: Tensor | None,
    bwd_chunks: Tensor | None,
    bwd_rows: Tensor | None,
    penalty: Tensor | None,
    worst: Tensor | None,
    cu_groups: Tensor | None,
    order: Tensor | None,
    group_size: int,
    entailment: int,
    activation: str,
    limit: float,
    form: str,
    consistency: str,
    w_val: float,
    w_sem: float,
    gate: float,
    neutral_norm: float,
    distance_weight: float,
    non_finite: str,
    scale: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """(scores [7, B] in the order of OUTPUTS, bits [B] uint8); see `op.reward_scores`."""
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    values_BK = _activated(_picked(values.to(dtype), value_rows), activation, limit)
    targets_BK = targets.to(dtype)
    cosine_B, paid_B, l2_B, values_ok_B, targets_ok_B = _value_terms(
        values_BK, targets_BK, neutral_norm
    )
    fwd_B = _entailment(fwd.to(dtype), fwd_sentences, fwd_chunks, fwd_rows, entailment)
    bwd_B = _entailment(bwd.to(dtype), bwd_sentences, bwd_chunks, bwd_rows, entailment)
    semantic_B = _semantic(fwd_B, bwd_B, consistency)
    reward_B = _combined(paid_B, semantic_B, form, w_val, w_sem, gate)
    reward_B = reward_B - distance_weight * l2_B
    finite = {
        "values": values_ok_B,
        "fwd": torch.isfinite(fwd_B),
        "bwd": torch.isfinite(bwd_B),
        "targets": targets_ok_B,
    }
    if penalty is not None:
        reward_B = reward_B - penalty.to(dtype)
        finite["penalty"] = torch.isfinite(penalty)
    floor = 0.0 if form == "product" else -w_val
    reward_B = reward_B.clamp(min=floor)
    if worst is not None:
        reward_B = reward_B.masked_fill(worst, floor)
    bits_B = torch.zeros_like(reward_B, dtype=torch.uint8)
    for name, ok_B in finite.items():
        bits_B = bits_B + NON_FINITE[name] * (~ok_B).to(torch.uint8)
    overflow_B = (bits_B == 0) & ~torch.isfinite(reward_B)
    bits_B = bits_B.masked_fill(overflow_B, NON_FINITE["reward"])
    bad = torch.nan if non_finite == "nan" else floor
    reward_B = reward_B.masked_fill(bits_B != 0, bad)
    advantage_B = _advantages(reward_B, cu_groups, order, group_size, scale, eps)
    parts = (reward_B, advantage_B, cosine_B, l2_B, fwd_B, bwd_B, semantic_B)
    return torch.stack(parts), bits_B


def _picked(table: Tensor, rows: Tensor | None) -> Tensor:
    """table[rows], zeros for a row of -1."""
    if rows is None:
        return table
    if not len(table):
        return table.new_zeros(len(rows), *table.shape[1:])
    absent = (rows < 0).reshape(-1, *[1] * (table.ndim - 1))
    return table[rows.clamp(min=0)].masked_fill(absent, 0.0)


def _activated(values_BK: Tensor, activation: str, limit: float) -> Tensor:
    """Values on their scale; an infinite score becomes NaN, so that no activation can hide it."""
    shown_BK = values_BK.masked_fill(torch.isinf(values_BK), torch.nan)
    if activation == "tanh":
        return limit * shown_BK.tanh()
    return shown_BK.clamp(-limit, limit) if activation == "clamp" else shown_BK


def _value_terms(
    values_BK: Tensor, targets_BK: Tensor, neutral_norm: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cosine as measured, cosine as paid, L2 distance, finite values, finite targets, each [B]."""
    norm_B = values_BK.square().sum(-1).sqrt()
    target_norm_B = targets_BK.square().sum(-1).sqrt()
    is_zero_B, target_is_zero_B = norm_B <= ZERO_NORM, target_norm_B <= ZERO_NORM
    unit_BK = values_BK / norm_B.masked_fill(is_zero_B, 1.0)[:, None]
    target_unit_BK = targets_BK / target_norm_B.masked_fill(target_is_zero_B, 1.0)[:, None]
    dot_B = (unit_BK * target_unit_BK).sum(-1).clamp(-1.0, 1.0)

    def guarded(none_B: Tensor) -> Tensor:
        both_B = (none_B & target_is_zero_B).to(dot_B.dtype)
        return torch.where(none_B | target_is_zero_B, both_B, dot_B)

    l2_B = (values_BK - targets_BK).square().sum(-1).sqrt()
    paid_B = guarded(is_zero_B | (norm_B < neutral_norm))
    finite = torch.isfinite(norm_B), torch.isfinite(target_norm_B)
    return guarded(is_zero_B), paid_B, l2_B, *finite


def _entailment(
    scores: Tensor,
    cu_sentences: Tensor | None,
    cu_chunks: Tensor | None,
    rows: Tensor | None,
    label: int,
) -> Tensor:
    """P(entailment) [B]: of the best chunk of each sentence, averaged over sentences."""
    if scores.ndim == 2:
        scores = scores.softmax(-1)[:, label]
    if cu_sentences is None or cu_chunks is None:
        return scores
    pieces_P = _picked(scores, rows)
    best_S = _by_segment(pieces_P, cu_chunks, "amax")
    return _by_segment(best_S, cu_sentences, "mean")


def _by_segment(x_N: Tensor, cu: Tensor, how: str) -> Tensor:
    """Maximum or mean of each segment cu[i] : cu[i + 1]; 0 for an empty one, NaN where one is."""
    segment_N = _segment_of(len(x_N), cu)
    wrong_N = ~torch.isfinite(x_N)
    plain_N = x_N.masked_fill(wrong_N, 0.0)
    out = x_N.new_zeros(len(cu)).scatter_reduce(0, segment_N, plain_N, how, include_self=False)
    wrong = x_N.new_zeros(len(cu)).index_add(0, segment_N, wrong_N.to(x_N.dtype))
    return out.masked_fill(wrong > 0, torch.nan)[:-1]


def _segment_of(count: int, cu: Tensor) -> Tensor:
    """Segment of each of `count` items, [count]; len(cu) - 1 for those past the end."""
    return torch.bucketize(torch.arange(count, device=cu.device), cu[1:].contiguous(), right=True)


def _semantic(fwd_B: Tensor, bwd_B: Tensor, consistency: str) -> Tensor:
    if consistency == "geometric":
        return (fwd_B * bwd_B).clamp(min=0).sqrt()
    if consistency == "min":
        return torch.minimum(fwd_B, bwd_B)
    return (2 * fwd_B + bwd_B) / 3


def _combined(
    paid_B: Tensor, semantic_B: Tensor, form: str, w_val: float, w_sem: float, gate: float
) -> Tensor:
    if form == "product":
        return ((1 + paid_B) / 2) ** w_val * semantic_B**w_sem
    if form == "gated":
        paid_B = torch.where(semantic_B >= gate, paid_B, -torch.ones_like(paid_B))
    return w_val * paid_B + w_sem * semantic_B


def _advantages(
    reward_B: Tensor,
    cu_groups: Tensor | None,
    order: Tensor | None,
    group_size: int,
    scale: str,
    eps: float,
) -> Tensor:
    """As `group_advantages`, in float64; a NaN reward makes its whole group NaN (its whole batch
    under scale "batch"). NaN throughout where no groups were given.
    """
    rows = len(reward_B)
    if cu_groups is None and group_size == 0:
        return torch.full_like(reward_B, torch.nan)
    if cu_groups is None:
        group_B, groups = torch.arange(rows, device=reward_B.device) // group_size, rows
    else:
        group_B, groups = _segment_of(rows, cu_groups), len(cu_groups)
    raw_B = (reward_B if order is None else reward_B[order]).to(torch.float64)
    zeros_G = raw_B.new_zeros(groups)
    lowest_G = zeros_G.scatter_reduce(0, group_B, raw_B, "amin", include_self=False)
    shifted_B = raw_B - lowest_G[group_B]
    count_G = zeros_G.index_add(0, group_B, torch.ones_like(raw_B)).clamp(min=1)
    centred_B = shifted_B - (zeros_G.index_add(0, group_B, shifted_B) / count_G)[group_B]
    if scale == "group":
        squares_G = zeros_G.index_add(0, group_B, centred_B.square())
        centred_B = centred_B / ((squares_G / (count_G - 1).clamp(min=1)).sqrt()[group_B] + eps)
    elif scale == "batch" and rows > 1:
        centred_B = centred_B / (raw_B.std() + eps)
    centred_B = centred_B.to(reward_B.dtype)
    return centred_B if order is None else torch.empty_like(centred_B).scatter(0, order, centred_B)
