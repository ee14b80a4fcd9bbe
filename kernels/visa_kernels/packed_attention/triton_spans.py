"""Triton: which tokens each token of a packed sequence meets, as intervals, and how tiles cut them.

Every mask of these ops is an interval: query i attends to keys [lo_i, hi_i) of its own segment, and
key j is attended to by queries [lo_j, hi_j). A tile of consecutive tokens therefore meets one range
of blocks, in which the inner blocks need no mask at all. Tiles may span short segments. Completions
also meet an extra interval, their prompt, whole and unmasked; prompt keys meet all completions of
their group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERVAL_BLOCK = 256
TILE_FIELDS = 6
"""first, end, prompt_first, prompt_end, completions_first, completions_end."""


@triton.jit
def _segment_of(cu_ptr, positions, n_segments, steps):
    """Largest s with cu[s] <= position, by bisection; n_segments for positions past the end."""
    low = positions * 0
    high = low + n_segments + 1
    for _ in range(steps):
        middle = (low + high) // 2
        fits = tl.load(cu_ptr + middle).to(tl.int32) <= positions
        low = tl.where(fits, middle, low)
        high = tl.where(fits, high, middle)
    return low


@triton.jit(do_not_specialize=["n_tokens", "n_segments", "steps", "window"])
def intervals_kernel(
    cu_ptr,
    spans_ptr,
    n_tokens,
    n_segments,
    steps,
    window,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """spans [4, N]: query's keys lo and hi, key's queries lo and hi; a token outside has none."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = token < n_tokens
    segment = _segment_of(cu_ptr, token, n_segments, steps)
    inside = segment < n_segments
    first = tl.load(cu_ptr + segment, mask=inside, other=0).to(tl.int32)
    end = tl.load(cu_ptr + segment + 1, mask=inside, other=0).to(tl.int32)
    before = first
    after = end
    if WINDOWED:
        before = tl.maximum(first, token - window)
        after = tl.minimum(end, token + window + 1)
    row_hi = after
    col_lo = before
    if CAUSAL:
        row_hi = token + 1
        col_lo = token
    rows = spans_ptr + token
    tl.store(rows, tl.where(inside, before, token), mask=valid)
    tl.store(rows + n_tokens, tl.where(inside, row_hi, token), mask=valid)
    tl.store(rows + 2 * n_tokens, tl.where(inside, col_lo, token), mask=valid)
    tl.store(rows + 3 * n_tokens, tl.where(inside, after, token), mask=valid)


@triton.jit
def _unit_start(cu_ptr, groups_ptr, unit, n_groups):
    """First token of a unit: 2g is the prompt of group g, 2g + 1 its completions."""
    group = unit // 2
    segment = tl.load(groups_ptr + group)
    following = tl.load(groups_ptr + tl.minimum(group + 1, n_groups))
    segment = tl.where(unit % 2 == 1, tl.minimum(segment + 1, following), segment)
    return tl.load(cu_ptr + segment).to(tl.int32)


@triton.jit(do_not_specialize=["n_slots", "n_groups", "steps"])
def tiles_kernel(
    cu_ptr,
    groups_ptr,
    tiles_ptr,
    n_slots,
    n_groups,
    steps,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Tiles that cross no prompt or group: [2 * n_slots, 6], see TILE_FIELDS; some are empty.

    First those of prompts, whose keys every completion of the group sees: what takes longest must
    not start last. A unit of group g that starts at token a has the slots from a // TILE + g on:
    always enough for it, and known from cu_seqlens alone, so that no host needs to see the lengths.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_completion = place >= n_slots
    slot = tl.where(is_completion, place - n_slots, place)
    odd = is_completion.to(tl.int32)
    low = slot * 0
    high = low + n_groups
    for _ in range(steps):
        middle = (low + high) // 2
        start = _unit_start(cu_ptr, groups_ptr, 2 * middle + odd, n_groups)
        fits = start // TILE + middle <= slot
        low = tl.where(fits, middle, low)
        high = tl.where(fits, high, middle)
    unit = 2 * low + odd
    start = _unit_start(cu_ptr, groups_ptr, unit, n_groups)
    end = _unit_start(cu_ptr, groups_ptr, unit + 1, n_groups)
    nth = slot - start // TILE - low
    end = tl.where(nth < 0, start, end)
    first = start + nth * TILE
    prompt = _unit_start(cu_ptr, groups_ptr, 2 * low, n_groups)
    group_end = _unit_start(cu_ptr, groups_ptr, 2 * low + 2, n_groups)
    first = tl.where(nth < 0, start, first)
    field = tiles_ptr + place * 6
    valid = place < 2 * n_slots
    tl.store(field, first, mask=valid)
    tl.store(field + 1, tl.minimum(first + TILE, end), mask=valid)
    tl.store(field + 2, tl.where(is_completion, prompt, 0), mask=valid)
    tl.store(field + 3, tl.where(is_completion, start, 0), mask=valid)
    tl.store(field + 4, tl.where(is_completion, 0, end), mask=valid)
    tl.store(field + 5, tl.where(is_completion, 0, group_end), mask=valid)


@triton.jit
def tile_bounds(tiles_ptr, tile, n_tokens, FIELD: tl.constexpr, BLOCK: tl.constexpr):
    """(first, end, extra_first, extra_end) of a tile; without a table, tiles cut all tokens."""
    first = tile * BLOCK
    end = tl.minimum(first + BLOCK, n_tokens)
    extra_first = 0
    extra_end = 0
    if FIELD > 0:
        first = tl.load(tiles_ptr + tile * 6)
        end = tl.load(tiles_ptr + tile * 6 + 1)
        extra_first = tl.load(tiles_ptr + tile * 6 + FIELD)
        extra_end = tl.load(tiles_ptr + tile * 6 + FIELD + 1)
    return first, end, extra_first, extra_end


@triton.jit
def cut_range(lo, hi, BLOCK: tl.constexpr):
    """Blocks that a tile's intervals [lo, hi) need: (start, n_head, n_inner, n_tail, end).

    From `start`: n_head masked blocks, n_inner that all rows of the tile see whole, n_tail masked.
    """
    start = tl.min(lo, 0)
    end = tl.max(hi, 0)
    n_head = (tl.max(lo, 0) - start + BLOCK - 1) // BLOCK
    inner = start + n_head * BLOCK
    n_inner = tl.maximum(tl.min(hi, 0) - inner, 0) // BLOCK
    n_tail = (tl.maximum(end - inner - n_inner * BLOCK, 0) + BLOCK - 1) // BLOCK
    return start, n_head, n_inner, n_tail, end


@triton.jit
def load_rows(pointer, start, rows, dims, stride, limit, HEAD: tl.constexpr, MASKED: tl.constexpr):
    """[rows, PAD] elements from token `start` on, 0 past `limit` (if MASKED) and past HEAD."""
    at = pointer + start.to(tl.int64) * stride + rows[:, None] * stride + dims[None, :]
    if MASKED:
        return tl.load(at, mask=(start + rows[:, None] < limit) & (dims[None, :] < HEAD), other=0.0)
    if dims.shape[0] != HEAD:
        return tl.load(at, mask=dims[None, :] < HEAD, other=0.0)
    return tl.load(at)


def intervals(cu_seqlens: Tensor, n_tokens: int, causal: bool, window: int) -> Tensor:
    """spans int32 [4, N] on the device of `cu_seqlens`; window -1 for none."""
    spans = torch.empty(4, n_tokens, dtype=torch.int32, device=cu_seqlens.device)
    n_segments = len(cu_seqlens) - 1
    intervals_kernel[(triton.cdiv(n_tokens, INTERVAL_BLOCK),)](
        cu_seqlens,
        spans,
        n_tokens,
        n_segments,
        (n_segments + 1).bit_length(),
        window,
        CAUSAL=causal,
        WINDOWED=window >= 0,
        BLOCK=INTERVAL_BLOCK,
    )
    return spans


def tile_table(cu_seqlens: Tensor, cu_groups: Tensor, n_tokens: int, tile: int) -> Tensor:
    """int32 [n_tiles, 6] for groups of segments; see `tiles_kernel`."""
    n_groups = len(cu_groups) - 1
    n_slots = n_tokens // tile + n_groups
    tiles = torch.empty(2 * n_slots, TILE_FIELDS, dtype=torch.int32, device=cu_seqlens.device)
    tiles_kernel[(triton.cdiv(2 * n_slots, INTERVAL_BLOCK),)](
        cu_seqlens,
        cu_groups,
        tiles,
        n_slots,
        n_groups,
        n_groups.bit_length(),
        TILE=tile,
        BLOCK=INTERVAL_BLOCK,
    )
    return tiles
