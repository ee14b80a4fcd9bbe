"""Triton: forward of attention over packed segments, with an optional prompt shared by completions.

Flash attention (Dao 2023) with the masks of `triton_spans`. One program holds BLOCK_M queries of a
head in registers and passes over their keys in two loops: first all blocks that need no mask (the
prompt's and the inner ones of the own segment), then the masked rest. Head sizes are padded to a
power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visa_kernels.packed_attention.triton_spans import (
    cut_range,
    intervals,
    load_rows,
    tile_bounds,
    tile_table,
)
from visa_kernels.packed_attention.triton_tiles import pad_of, precision, tiling

LOG2_E = 1.4426950408889634
PROMPT_FIELD = 2


@triton.jit
def _softmax_step(scores, row_max, row_sum, acc, v, PRECISION: tl.constexpr):
    """One block of the running softmax; scores are in units of log 2."""
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    weights = tl.exp2(scores - new_max[:, None])
    shrink = tl.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return new_max, row_sum, acc


@triton.jit(do_not_specialize=["n_tokens"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    spans_ptr,
    tiles_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    n_tokens,
    n_heads,
    heads_per_kv,
    scale_log2,
    HEAD: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FIELD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [N, H, HEAD] and lse fp32 [H, N], in units of log 2 and of the scaled scores."""
    head = tl.program_id(1).to(tl.int64)
    first, end, extra_lo, extra_hi = tile_bounds(
        tiles_ptr, tl.program_id(0), n_tokens, FIELD, BLOCK_M
    )
    if first >= end:
        return
    # Rows past the tile's end repeat its last one: no masks on loads, none is stored.
    row = tl.minimum(first + tl.arange(0, BLOCK_M), end - 1)
    lo = tl.load(spans_ptr + row)
    hi = tl.load(spans_ptr + n_tokens + row)
    own_lo, n_head, n_inner, n_tail, own_hi = cut_range(lo, hi, BLOCK_N)
    n_extra = (extra_hi - extra_lo) // BLOCK_N

    dims = tl.arange(0, PAD)
    column = tl.arange(0, BLOCK_N)
    q_at = q_ptr + head * q_head + row.to(tl.int64)[:, None] * q_token + dims[None, :]
    q = tl.load(q_at, mask=dims[None, :] < HEAD, other=0.0)
    k_base = k_ptr + head // heads_per_kv * k_head
    v_base = v_ptr + head // heads_per_kv * v_head
    row_max = tl.full([BLOCK_M], -1e30, tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, PAD], tl.float32)

    for i in range(n_extra + n_inner):
        start = own_lo + (n_head + i - n_extra) * BLOCK_N
        if FIELD > 0:
            start = tl.where(i < n_extra, extra_lo + i * BLOCK_N, start)
        k = load_rows(k_base, start, column, dims, k_token, 0, HEAD, False)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        v = load_rows(v_base, start, column, dims, v_token, 0, HEAD, False)
        row_max, row_sum, acc = _softmax_step(scores, row_max, row_sum, acc, v, PRECISION)

    n_masked = n_head + n_tail
    extra_tail = extra_lo + n_extra * BLOCK_N
    for i in range(n_masked + (extra_tail < extra_hi).to(tl.int32)):
        start = own_lo + (i + tl.where(i < n_head, 0, n_inner)) * BLOCK_N
        limit = own_hi
        from_ = lo
        to = hi
        if FIELD > 0:
            is_extra = i >= n_masked
            start = tl.where(is_extra, extra_tail, start)
            limit = tl.where(is_extra, extra_hi, limit)
            from_ = tl.where(is_extra, extra_tail, lo)
            to = tl.where(is_extra, extra_hi, hi)
        k = load_rows(k_base, start, column, dims, k_token, limit, HEAD, True)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        key = start + column
        seen = (key[None, :] >= from_[:, None]) & (key[None, :] < to[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        v = load_rows(v_base, start, column, dims, v_token, limit, HEAD, True)
        row_max, row_sum, acc = _softmax_step(scores, row_max, row_sum, acc, v, PRECISION)

    # A token outside all segments sees nothing: output 0, and weights of 0 in the backward.
    nothing = row_sum == 0.0
    lse = tl.where(nothing, float("inf"), row_max + tl.log2(row_sum))
    acc = acc / tl.where(nothing, 1.0, row_sum)[:, None]
    store_row = first + tl.arange(0, BLOCK_M)
    tl.store(lse_ptr + head * n_tokens + store_row, lse, mask=store_row < end)
    out_at = out_ptr + (store_row.to(tl.int64)[:, None] * n_heads + head) * HEAD + dims[None, :]
    keep = (store_row[:, None] < end) & (dims[None, :] < HEAD)
    tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=keep)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_groups: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out [N, H, D], lse fp32 [H, N] and spans int32 [4, N] for the backward; window -1 for none.

    Arguments are checked by `op`; the last dimension of q, k and v is contiguous.
    """
    n_tokens, n_heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(n_heads, n_tokens, dtype=torch.float32, device=q.device)
    if not n_tokens:
        return out, lse, torch.empty(4, 0, dtype=torch.int32, device=q.device)
    spans = intervals(cu_seqlens, n_tokens, causal, window)
    cut = tiling("forward", head_dim, q.dtype, q.device)
    tiles, n_tiles = tiles_of(cu_seqlens, cu_groups, n_tokens, cut.block)
    forward_kernel[(n_tiles, n_heads)](
        q,
        k,
        v,
        out,
        lse,
        spans,
        tiles,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        n_tokens,
        n_heads,
        n_heads // k.shape[1],
        scale * LOG2_E,
        HEAD=head_dim,
        PAD=pad_of(head_dim),
        BLOCK_M=cut.block,
        BLOCK_N=cut.inner,
        FIELD=0 if cu_groups is None else PROMPT_FIELD,
        PRECISION=precision(),
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    return out, lse, spans


def tiles_of(
    cu_seqlens: Tensor, cu_groups: Tensor | None, n_tokens: int, tile: int
) -> tuple[Tensor | None, int]:
    """Table of tiles, None where tiles cut all tokens evenly, and their number."""
    if cu_groups is None:
        return None, triton.cdiv(n_tokens, tile)
    tiles = tile_table(cu_seqlens, cu_groups, n_tokens, tile)
    return tiles, len(tiles)


def compile_cases() -> Iterator[tuple[Any, ...]]:
    """Real configurations of all kernels, for the compile gate."""
    from visa_kernels.packed_attention.triton_cases import cases

    return cases()
