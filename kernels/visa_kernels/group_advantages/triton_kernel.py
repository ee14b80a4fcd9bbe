"""Group advantages in Triton: groups of consecutive rows, or any order by comparing ids.

All is computed in float64 on shifted rewards, as the reference does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS_BY_ID = 8192
"""With group_ids of more rows than this, rows are sorted by group first."""

SCALES = {"group": 1, "batch": 2, "none": 3}
GROUP, BATCH = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _counted(mask_ptr, i, inside):
    """Rows i that count: inside, and True in the mask where there is one."""
    if mask_ptr is not None:
        return inside & (tl.load(mask_ptr + i, mask=inside, other=0) != 0)
    else:
        return inside


@triton.jit
def batch_deviation(rewards_ptr, mask_ptr, rows):
    """Sample standard deviation of all counted rewards, float64; 0 for fewer than two."""
    TILE: tl.constexpr = 1024
    count, total = tl.zeros([TILE], tl.float64), tl.zeros([TILE], tl.float64)
    for at in range(0, rows, TILE):
        i = at + tl.arange(0, TILE)
        keep = _counted(mask_ptr, i, i < rows)
        r = tl.load(rewards_ptr + i, mask=keep, other=0.0).to(tl.float64)
        total += r
        count += tl.where(keep, 1.0, 0.0)
    n = tl.sum(count)
    mean = tl.sum(total) / tl.where(n > 0, n, 1.0)
    squares = tl.zeros([TILE], tl.float64)
    for at in range(0, rows, TILE):
        i = at + tl.arange(0, TILE)
        keep = _counted(mask_ptr, i, i < rows)
        r = tl.load(rewards_ptr + i, mask=keep, other=0.0).to(tl.float64)
        squares += tl.where(keep, (r - mean) * (r - mean), 0.0)
    return tl.sqrt(tl.sum(squares) / tl.where(n > 1, n - 1, 1.0))


@triton.jit
def scaled(centred, variance, deviation, eps, SCALE: tl.constexpr):
    """A centred reward over the spread that the scale names."""
    if SCALE == GROUP:
        return centred / (tl.sqrt(variance) + eps)
    elif SCALE == BATCH:
        return centred / (deviation + eps)
    else:
        return centred


@triton.jit
def advantage_of_row(
    row, rewards_ptr, ids_ptr, mask_ptr, rows, group_size, deviation, eps,
    SCALE: tl.constexpr, GROUP_BLOCK: tl.constexpr,
):  # fmt: skip
    """Advantage of one row, float32; its group fits GROUP_BLOCK (with ids: all rows do)."""
    if ids_ptr is not None:
        i = tl.arange(0, GROUP_BLOCK)
        own_id = tl.load(ids_ptr + row)
        member = (i < rows) & (tl.load(ids_ptr + i, mask=i < rows, other=0) == own_id)
    else:
        i = (row // group_size) * group_size + tl.arange(0, GROUP_BLOCK)
        member = tl.arange(0, GROUP_BLOCK) < group_size
    keep = _counted(mask_ptr, i, member)
    r = tl.load(rewards_ptr + i, mask=keep, other=0.0).to(tl.float64)
    lowest = tl.min(tl.where(keep, r, float("inf")))
    shifted = tl.where(keep, r - lowest, 0.0)
    n = tl.sum(tl.where(keep, 1.0, 0.0)).to(tl.float64)
    total = tl.sum(shifted)
    mean = total / tl.where(n > 0, n, 1.0)
    spread = tl.where(keep, (shifted - mean) * (shifted - mean), 0.0)
    variance = tl.sum(spread) / tl.where(n > 1, n - 1, 1.0)
    # A reward that is not finite makes the total so, and 0 * total NaN.
    own = tl.load(rewards_ptr + row).to(tl.float64) - lowest - mean + 0.0 * total
    counts = _counted(mask_ptr, row, row < rows)
    return tl.where(counts, scaled(own, variance, deviation, eps, SCALE), 0.0).to(tl.float32)


@triton.jit
def of_groups_kernel(
    rewards_ptr, mask_ptr, order_ptr, cu_groups_ptr, out_ptr, rows, group_size, eps,
    SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program per group of consecutive rows, or of consecutive places in `order`."""
    group = tl.program_id(0).to(tl.int64)
    if cu_groups_ptr is not None:
        start, end = tl.load(cu_groups_ptr + group), tl.load(cu_groups_ptr + group + 1)
    else:
        start, end = group * group_size, (group + 1) * group_size
    deviation = tl.zeros([], tl.float64)
    if SCALE == BATCH and end > start:
        deviation = batch_deviation(rewards_ptr, mask_ptr, rows)
    lowest = tl.full([], float("inf"), tl.float64)
    n = tl.zeros([], tl.float64)
    for at in range(start, end, BLOCK):
        i, keep, r = _members(rewards_ptr, mask_ptr, order_ptr, at, end, BLOCK)
        tile_lowest = tl.min(tl.where(keep, r, float("inf")))
        lowest = tl.where(tile_lowest < lowest, tile_lowest, lowest)
        n += tl.sum(tl.where(keep, 1.0, 0.0)).to(tl.float64)
    total = tl.zeros([], tl.float64)
    for at in range(start, end, BLOCK):
        i, keep, r = _members(rewards_ptr, mask_ptr, order_ptr, at, end, BLOCK)
        total += tl.sum(tl.where(keep, r - lowest, 0.0))
    mean = total / tl.where(n > 0, n, 1.0)
    squares = tl.zeros([], tl.float64)
    if SCALE == GROUP:
        for at in range(start, end, BLOCK):
            i, keep, r = _members(rewards_ptr, mask_ptr, order_ptr, at, end, BLOCK)
            centred = r - lowest - mean
            squares += tl.sum(tl.where(keep, centred * centred, 0.0))
    variance = squares / tl.where(n > 1, n - 1, 1.0)
    for at in range(start, end, BLOCK):
        i, keep, r = _members(rewards_ptr, mask_ptr, order_ptr, at, end, BLOCK)
        own = scaled(r - lowest - mean + 0.0 * total, variance, deviation, eps, SCALE)
        place = at + tl.arange(0, BLOCK)
        tl.store(out_ptr + i, tl.where(keep, own, 0.0), mask=place < end)


@triton.jit
def _members(rewards_ptr, mask_ptr, order_ptr, at, end, BLOCK: tl.constexpr):
    """Rows at a tile of places, whether they count, and their rewards in float64."""
    place = at + tl.arange(0, BLOCK)
    inside = place < end
    i = place
    if order_ptr is not None:
        i = tl.load(order_ptr + place, mask=inside, other=0)
    keep = _counted(mask_ptr, i, inside)
    return i, keep, tl.load(rewards_ptr + i, mask=keep, other=0.0).to(tl.float64)


@triton.jit
def by_id_kernel(
    rewards_ptr, ids_ptr, mask_ptr, out_ptr, rows, eps,
    SCALE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program, each compared with all rows: any order of ids, one launch."""
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own_inside = own < rows
    own_id = tl.load(ids_ptr + own, mask=own_inside, other=0)
    deviation = tl.zeros([], tl.float64)
    if SCALE == BATCH:
        deviation = batch_deviation(rewards_ptr, mask_ptr, rows)
    lowest = tl.full([ROWS], float("inf"), tl.float64)
    n, total = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for at in range(0, rows, BLOCK):
        member, r = _tile_by_id(rewards_ptr, ids_ptr, mask_ptr, own_id, at, rows, BLOCK)
        tile_lowest = tl.min(tl.where(member, r, float("inf")), axis=1)
        lowest = tl.where(tile_lowest < lowest, tile_lowest, lowest)
        n += tl.sum(tl.where(member, 1.0, 0.0), axis=1).to(tl.float64)
    for at in range(0, rows, BLOCK):
        member, r = _tile_by_id(rewards_ptr, ids_ptr, mask_ptr, own_id, at, rows, BLOCK)
        total += tl.sum(tl.where(member, r - lowest[:, None], 0.0), axis=1)
    mean = total / tl.where(n > 0, n, 1.0)
    squares = tl.zeros([ROWS], tl.float64)
    if SCALE == GROUP:
        for at in range(0, rows, BLOCK):
            member, r = _tile_by_id(rewards_ptr, ids_ptr, mask_ptr, own_id, at, rows, BLOCK)
            centred = (r - lowest[:, None]) - mean[:, None]
            squares += tl.sum(tl.where(member, centred * centred, 0.0), axis=1)
    variance = squares / tl.where(n > 1, n - 1, 1.0)
    keep = _counted(mask_ptr, own, own_inside)
    r = tl.load(rewards_ptr + own, mask=keep, other=0.0).to(tl.float64)
    out = scaled(r - lowest - mean + 0.0 * total, variance, deviation, eps, SCALE)
    tl.store(out_ptr + own, tl.where(keep, out, 0.0), mask=own_inside)


@triton.jit
def _tile_by_id(rewards_ptr, ids_ptr, mask_ptr, own_id, at, rows, BLOCK: tl.constexpr):
    """Which of a tile of rows count in each own row's group [ROWS, BLOCK]; rewards [1, BLOCK]."""
    i = at + tl.arange(0, BLOCK)
    keep = _counted(mask_ptr, i, i < rows)
    ids = tl.load(ids_ptr + i, mask=i < rows, other=0)
    r = tl.load(rewards_ptr + i, mask=keep, other=0.0).to(tl.float64)
    return (own_id[:, None] == ids[None, :]) & keep[None, :], r[None, :]


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor | None,
    mask: Tensor | None,
    group_size: int,
    scale: str,
    eps: float,
) -> Tensor:
    """Advantages [B]; float64 for float64 rewards, otherwise float32."""
    rows = len(rewards)
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    out = torch.empty(rows, dtype=dtype, device=rewards.device)
    if rows == 0:
        return out
    rewards = rewards.contiguous()
    mask = None if mask is None else mask.contiguous()
    if group_ids is None:
        launch_groups(rewards, mask, None, None, out, rows // group_size, group_size, scale, eps)
    elif rows <= MAX_ROWS_BY_ID:
        tile = dict(ROWS=8, BLOCK=min(512, max(16, triton.next_power_of_2(rows))))
        by_id_kernel[(triton.cdiv(rows, 8),)](
            rewards, group_ids.contiguous(), mask, out, rows, eps, SCALE=SCALES[scale], **tile
        )
    else:
        order, cu_groups = sorted_groups(group_ids)
        launch_groups(rewards, mask, order, cu_groups, out, rows, 64, scale, eps)
    return out


def launch_groups(
    rewards: Tensor,
    mask: Tensor | None,
    order: Tensor | None,
    cu_groups: Tensor | None,
    out: Tensor,
    groups: int,
    group_size: int,
    scale: str,
    eps: float,
) -> None:
    """One program per group; a group past the last one is empty and its program does nothing."""
    block = min(1024, max(16, triton.next_power_of_2(group_size)))
    of_groups_kernel[(groups,)](
        rewards, mask, order, cu_groups, out, len(rewards), group_size, eps,
        SCALE=SCALES[scale], BLOCK=block, num_warps=4 if scale == "batch" else max(1, block // 256),
    )  # fmt: skip


def sorted_groups(group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in order of group [B], and where each group starts [B + 1]: the last ones are empty.

    How many groups there are is not read back.
    """
    sorted_ids, order = group_ids.sort(stable=True)
    rank = torch.zeros_like(order)
    rank[1:] = (sorted_ids[1:] != sorted_ids[:-1]).cumsum(0)
    bounds = torch.arange(len(group_ids) + 1, device=group_ids.device)
    return order, torch.searchsorted(rank, bounds)


def compile_cases() -> Iterable[tuple[str, Any, dict[str, str | None], dict[str, Any], int, int]]:
    """What the compile gate builds."""
    rest = {"out_ptr": "*fp32", "rows": "i32"}
    for scale in SCALES:
        signature = {"rewards_ptr": "*fp32", "mask_ptr": None, "order_ptr": None}
        signature |= {"cu_groups_ptr": None, **rest, "group_size": "i32", "eps": "fp32"}
        by_size = {"SCALE": SCALES[scale], "BLOCK": 64}
        warps = 4 if scale == "batch" else 1
        yield f"groups-{scale}", of_groups_kernel, signature, by_size, warps, 3
        signature = {"rewards_ptr": "*fp32", "ids_ptr": "*i64", "mask_ptr": "*i1"}
        signature |= {**rest, "eps": "fp32"}
        by_id = {"SCALE": SCALES[scale], "ROWS": 8, "BLOCK": 512}
        yield f"by_id-{scale}", by_id_kernel, signature, by_id, 4, 3
    signature = {"rewards_ptr": "*bf16", "mask_ptr": "*i1", "order_ptr": "*i64"}
    signature |= {"cu_groups_ptr": "*i64", **rest, "group_size": "i32", "eps": "fp32"}
    yield "groups-sorted", of_groups_kernel, signature, {"SCALE": 1, "BLOCK": 1024}, 4, 3
