"""Advantages from rewards, as device functions for the Triton kernel; float64, as the reference."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(order, at, live):
    """Row of each place in the order of groups."""
    if order is not None:
        return tl.load(order + at, mask=live, other=0).to(tl.int64)
    else:
        return at


@triton.jit
def _rewards_at(scores, order, start, high, BB: tl.constexpr):
    """Rows of the places start .. start + BB - 1, which of them are there, rewards in float64."""
    at = start + tl.arange(0, BB)
    live = at < high
    b = place(order, at, live)
    return b, live, tl.load(scores + b, mask=live, other=0.0).to(tl.float64)


@triton.jit
def centred_tile(reward, live, count, eps, GROUP_SCALE: tl.constexpr):
    """Advantages of a group that fits one tile; shifted by its lowest, so that equals give 0."""
    reward = reward.to(tl.float64)
    shifted = tl.where(live, reward - tl.min(tl.where(live, reward, float("inf")), 0), 0.0)
    centred = tl.where(live, shifted - tl.sum(shifted, 0) / count, 0.0)
    if GROUP_SCALE:
        variance = tl.sum(centred * centred, 0) / tl.maximum(count - 1.0, 1.0)
        centred = centred / (tl.sqrt(variance) + eps)
    return centred.to(tl.float32)


@triton.jit
def long_group(
    scores, order, low, high, lowest, rows, eps, GROUP_SCALE: tl.constexpr, BB: tl.constexpr
):
    """Advantages of places low .. high - 1 from the rewards that this program has written."""
    count = (high - low).to(tl.float64)
    lowest = lowest.to(tl.float64)
    total, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    for start in range(low, high, BB):
        b, live, reward = _rewards_at(scores, order, start, high, BB)
        total += tl.sum(tl.where(live, reward - lowest, 0.0), 0)
    mean = total / count
    scale = tl.full([], 1.0, tl.float64)
    if GROUP_SCALE:
        for start in range(low, high, BB):
            b, live, reward = _rewards_at(scores, order, start, high, BB)
            centred = tl.where(live, reward - lowest - mean, 0.0)
            squares += tl.sum(centred * centred, 0)
        scale = tl.sqrt(squares / tl.maximum(count - 1.0, 1.0)) + eps
    for start in range(low, high, BB):
        b, live, reward = _rewards_at(scores, order, start, high, BB)
        advantage = ((reward - lowest - mean) / scale).to(tl.float32)
        tl.store(scores + rows + b, advantage, mask=live)


@triton.jit
def _shared_row(at, start, rows, BB: tl.constexpr):
    """A tile of a row of the scores in float64; .cg reads past this core's own cache."""
    i = start + tl.arange(0, BB).to(tl.int64)
    live = i < rows
    return live, tl.load(at + i, mask=live, other=0.0, cache_modifier=".cg").to(tl.float64)


@triton.jit
def scale_by_batch(scores, rows, eps, BB: tl.constexpr):
    """Divide all advantages by the deviation of all rewards."""
    first = tl.load(scores, cache_modifier=".cg").to(tl.float64)
    total, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    for start in range(0, rows, BB):
        live, reward = _shared_row(scores, start, rows, BB)
        total += tl.sum(tl.where(live, reward - first, 0.0), 0)
    mean = total / rows
    for start in range(0, rows, BB):
        live, reward = _shared_row(scores, start, rows, BB)
        centred = tl.where(live, reward - first - mean, 0.0)
        squares += tl.sum(centred * centred, 0)
    scale = tl.sqrt(squares / tl.maximum(rows - 1, 1)) + eps
    for start in range(0, rows, BB):
        live, advantage = _shared_row(scores + rows, start, rows, BB)
        i = start + tl.arange(0, BB).to(tl.int64)
        tl.store(scores + rows + i, (advantage / scale).to(tl.float32), mask=live)
