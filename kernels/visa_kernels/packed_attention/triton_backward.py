"""Triton: backward of attention over packed segments, see `triton_kernel` for the forward.

Two kernels, neither with atomics, so gradients are the same on every run: `dq_kernel` holds queries
and passes over their keys, `dkdv_kernel` holds keys and passes over the queries that see them, over
all query heads of its key head. Prompt keys meet all completions of their group as one unmasked
range, in which tiles may span completions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from visa_kernels.packed_attention.triton_kernel import LOG2_E, PROMPT_FIELD, tiles_of
from visa_kernels.packed_attention.triton_spans import cut_range, load_rows, tile_bounds
from visa_kernels.packed_attention.triton_tiles import head_splits, pad_of, precision, tiling

COMPLETIONS_FIELD = 4


@triton.jit
def _dq_step(scores, dout, lse, delta, k, v, acc, PRECISION: tl.constexpr):
    """Add one block of keys to dq / scale; scores are in units of log 2."""
    weights = tl.exp2(scores - lse[:, None])
    dweights = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    dscores = (weights * (dweights - delta[:, None])).to(k.dtype)
    return tl.dot(dscores, k, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["n_tokens"])
def dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    spans_ptr,
    tiles_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    dout_token,
    dout_head,
    n_tokens,
    n_heads,
    heads_per_kv,
    scale,
    scale_log2,
    HEAD: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FIELD: tl.constexpr,
    PRECISION: tl.constexpr,
    HOIST: tl.constexpr,
):
    """dq [N, H, HEAD], and delta fp32 [H, N] = sum of out * dout, which `dkdv_kernel` reads."""
    head = tl.program_id(1).to(tl.int64)
    first, end, extra_lo, extra_hi = tile_bounds(
        tiles_ptr, tl.program_id(0), n_tokens, FIELD, BLOCK_M
    )
    if first >= end:
        return
    row = tl.minimum(first + tl.arange(0, BLOCK_M), end - 1)
    lo = tl.load(spans_ptr + row)
    hi = tl.load(spans_ptr + n_tokens + row)
    own_lo, n_head, n_inner, n_tail, own_hi = cut_range(lo, hi, BLOCK_N)
    n_extra = (extra_hi - extra_lo) // BLOCK_N

    dims = tl.arange(0, PAD)
    column = tl.arange(0, BLOCK_N)
    in_head = dims[None, :] < HEAD
    row_at = row.to(tl.int64)[:, None]
    out_at = (row_at * n_heads + head) * HEAD + dims[None, :]
    out = tl.load(out_ptr + out_at, mask=in_head, other=0.0)
    dout_at = dout_ptr + head * dout_head + row_at * dout_token + dims[None, :]
    dout = tl.load(dout_at, mask=in_head, other=0.0)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    store_row = first + tl.arange(0, BLOCK_M)
    tl.store(delta_ptr + head * n_tokens + store_row, delta, mask=store_row < end)
    q_at = q_ptr + head * q_head + row_at * q_token + dims[None, :]
    q = tl.load(q_at, mask=in_head, other=0.0)
    lse = tl.load(lse_ptr + head * n_tokens + row)
    k_base = k_ptr + head // heads_per_kv * k_head
    v_base = v_ptr + head // heads_per_kv * v_head
    acc = tl.zeros([BLOCK_M, PAD], tl.float32)

    for i in tl.range(0, n_extra + n_inner, disable_licm=not HOIST):
        start = own_lo + (n_head + i - n_extra) * BLOCK_N
        if FIELD > 0:
            start = tl.where(i < n_extra, extra_lo + i * BLOCK_N, start)
        k = load_rows(k_base, start, column, dims, k_token, 0, HEAD, False)
        v = load_rows(v_base, start, column, dims, v_token, 0, HEAD, False)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        acc = _dq_step(scores, dout, lse, delta, k, v, acc, PRECISION)

    n_masked = n_head + n_tail
    extra_tail = extra_lo + n_extra * BLOCK_N
    n_last = n_masked + (extra_tail < extra_hi).to(tl.int32)
    for i in tl.range(0, n_last, disable_licm=not HOIST):
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
        v = load_rows(v_base, start, column, dims, v_token, limit, HEAD, True)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        key = start + column
        seen = (key[None, :] >= from_[:, None]) & (key[None, :] < to[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        acc = _dq_step(scores, dout, lse, delta, k, v, acc, PRECISION)

    dq_at = dq_ptr + (store_row.to(tl.int64)[:, None] * n_heads + head) * HEAD + dims[None, :]
    keep = (store_row[:, None] < end) & in_head
    tl.store(dq_at, (acc * scale).to(dq_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _dkdv_step(scores, k_rows_v, q, dout, lse, delta, dk, dv, PRECISION: tl.constexpr):
    """Add one block of queries to dk / scale and dv; scores are [keys, queries]."""
    weights = tl.exp2(scores - lse[None, :])
    dv = tl.dot(weights.to(dout.dtype), dout, dv, input_precision=PRECISION)
    dweights = tl.dot(k_rows_v, tl.trans(dout), input_precision=PRECISION)
    dscores = (weights * (dweights - delta[None, :])).to(q.dtype)
    dk = tl.dot(dscores, q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["n_tokens"])
def dkdv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    spans_ptr,
    tiles_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    dout_token,
    dout_head,
    n_tokens,
    n_kv_heads,
    heads_per_kv,
    heads_per_program,
    scale,
    scale_log2,
    HEAD: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FIELD: tl.constexpr,
    PRECISION: tl.constexpr,
    HOIST: tl.constexpr,
):
    """dk and dv [splits, N, Hk, HEAD]; split s sums over its share of the query heads."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    if FIELD > 0:
        # The table begins with the tiles that take longest: of all heads before any other.
        kv_head = tile % n_kv_heads
        tile = tile // n_kv_heads
    kv_head = kv_head.to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    first, end, extra_lo, extra_hi = tile_bounds(tiles_ptr, tile, n_tokens, FIELD, BLOCK_N)
    if first >= end:
        return
    key = tl.minimum(first + tl.arange(0, BLOCK_N), end - 1)
    lo = tl.load(spans_ptr + 2 * n_tokens + key)
    hi = tl.load(spans_ptr + 3 * n_tokens + key)
    own_lo, n_head, n_inner, n_tail, own_hi = cut_range(lo, hi, BLOCK_M)
    n_extra = (extra_hi - extra_lo) // BLOCK_M
    n_full = n_extra + n_inner
    n_masked = n_head + n_tail
    extra_tail = extra_lo + n_extra * BLOCK_M
    n_last = n_masked + (extra_tail < extra_hi).to(tl.int32)

    dims = tl.arange(0, PAD)
    column = tl.arange(0, BLOCK_M)
    in_head = dims[None, :] < HEAD
    key_at = key.to(tl.int64)[:, None]
    k = tl.load(k_ptr + kv_head * k_head + key_at * k_token + dims[None, :], in_head, 0.0)
    v = tl.load(v_ptr + kv_head * v_head + key_at * v_token + dims[None, :], in_head, 0.0)
    dk = tl.zeros([BLOCK_N, PAD], tl.float32)
    dv = tl.zeros([BLOCK_N, PAD], tl.float32)

    for member in range(heads_per_program):
        head = kv_head * heads_per_kv + split * heads_per_program + member
        q_base = q_ptr + head * q_head
        dout_base = dout_ptr + head * dout_head
        lse_base = lse_ptr + head * n_tokens
        delta_base = delta_ptr + head * n_tokens
        for i in tl.range(0, n_full, disable_licm=not HOIST):
            start = own_lo + (n_head + i - n_extra) * BLOCK_M
            if FIELD > 0:
                start = tl.where(i < n_extra, extra_lo + i * BLOCK_M, start)
            q = load_rows(q_base, start, column, dims, q_token, 0, HEAD, False)
            dout = load_rows(dout_base, start, column, dims, dout_token, 0, HEAD, False)
            lse = tl.load(lse_base + start + column)
            delta = tl.load(delta_base + start + column)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
            dk, dv = _dkdv_step(scores, v, q, dout, lse, delta, dk, dv, PRECISION)
        # Two pipelined loops need more registers than there are.
        for i in tl.range(0, n_last, num_stages=1, disable_licm=not HOIST):
            start = own_lo + (i + tl.where(i < n_head, 0, n_inner)) * BLOCK_M
            limit = own_hi
            from_ = lo
            to = hi
            if FIELD > 0:
                is_extra = i >= n_masked
                start = tl.where(is_extra, extra_tail, start)
                limit = tl.where(is_extra, extra_hi, limit)
                from_ = tl.where(is_extra, extra_tail, lo)
                to = tl.where(is_extra, extra_hi, hi)
            q = load_rows(q_base, start, column, dims, q_token, limit, HEAD, True)
            dout = load_rows(dout_base, start, column, dims, dout_token, limit, HEAD, True)
            query = start + column
            lse = tl.load(lse_base + query, mask=query < limit, other=0.0)
            delta = tl.load(delta_base + query, mask=query < limit, other=0.0)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
            seen = (query[None, :] >= from_[:, None]) & (query[None, :] < to[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            dk, dv = _dkdv_step(scores, v, q, dout, lse, delta, dk, dv, PRECISION)

    store_key = first + tl.arange(0, BLOCK_N)
    at = (split * n_tokens + store_key.to(tl.int64)[:, None]) * n_kv_heads + kv_head
    at = at * HEAD + dims[None, :]
    keep = (store_key[:, None] < end) & in_head
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=keep)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=keep)


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    spans: Tensor,
    cu_seqlens: Tensor,
    cu_groups: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of what `triton_kernel.forward` returned; `spans` holds causality and window."""
    n_tokens, n_heads, head_dim = q.shape
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not n_tokens:
        return dq, torch.empty_like(k), torch.empty_like(v)
    delta = torch.empty_like(lse)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    strides = [s for x in (q, k, v, dout) for s in x.stride()[:2]]
    cut = tiling("dq", head_dim, q.dtype, q.device)
    tiles, n_tiles = tiles_of(cu_seqlens, cu_groups, n_tokens, cut.block)
    dq_kernel[(n_tiles, n_heads)](
        q,
        k,
        v,
        out,
        dout,
        lse,
        delta,
        dq,
        spans,
        tiles,
        *strides,
        n_tokens,
        n_heads,
        n_heads // k.shape[1],
        scale,
        scale * LOG2_E,
        HEAD=head_dim,
        PAD=pad_of(head_dim),
        BLOCK_M=cut.block,
        BLOCK_N=cut.inner,
        FIELD=0 if cu_groups is None else PROMPT_FIELD,
        PRECISION=precision(),
        HOIST=cut.hoist,
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    dk, dv = _dkdv(dout, q, k, v, lse, delta, spans, cu_seqlens, cu_groups, scale)
    return dq, dk, dv


def _dkdv(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    spans: Tensor,
    cu_seqlens: Tensor,
    cu_groups: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """dk and dv; few keys are spread over programs by query head and summed in fp32."""
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads = k.shape[1]
    cut = tiling("dkdv", head_dim, q.dtype, q.device)
    tiles, n_tiles = tiles_of(cu_seqlens, cu_groups, n_tokens, cut.block)
    # Half of a table's tiles are empty, as it has room for prompts and completions apart.
    busy = n_tiles if tiles is None else n_tiles // 2
    splits = head_splits(busy * n_kv_heads, n_heads // n_kv_heads, q.device)
    shape = (splits, n_tokens, n_kv_heads, head_dim)
    dtype = q.dtype if splits == 1 else torch.float32
    dk, dv = (torch.empty(shape, dtype=dtype, device=q.device) for _ in range(2))
    grid = (n_tiles, n_kv_heads) if tiles is None else (n_tiles * n_kv_heads, 1)
    dkdv_kernel[(*grid, splits)](
        q,
        k,
        v,
        dout,
        lse,
        delta,
        dk,
        dv,
        spans,
        tiles,
        *(s for x in (q, k, v, dout) for s in x.stride()[:2]),
        n_tokens,
        n_kv_heads,
        n_heads // n_kv_heads,
        n_heads // n_kv_heads // splits,
        scale,
        scale * LOG2_E,
        HEAD=head_dim,
        PAD=pad_of(head_dim),
        BLOCK_M=cut.inner,
        BLOCK_N=cut.block,
        FIELD=0 if cu_groups is None else COMPLETIONS_FIELD,
        PRECISION=precision(),
        HOIST=cut.hoist,
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    if splits == 1:
        return dk[0], dv[0]
    return dk.sum(0).to(k.dtype), dv.sum(0).to(v.dtype)
