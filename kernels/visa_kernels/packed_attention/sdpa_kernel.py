"""CPU where the extension is missing: torch's own flash attention, one call per segment and prompt.

Completions take two calls, the prompt and their own tokens, joined by their log-sum-exp; in the
backward the joined output and log-sum-exp make each call's gradients exact by themselves. Heads of
one key head are the heads of the call and key heads its batch, so that nothing is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Part = tuple[slice, slice, bool, Tensor | None]
"""Queries, keys, whether causal, and an additive mask [queries, keys]."""


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
    """out [N, H, D], lse [H, N] in float32, and nothing else that the backward needs."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), torch.inf, dtype=torch.float32, device=q.device)
    for queries, keys, is_causal, mask in _own_parts(cu_seqlens, causal, window, q.dtype):
        part, part_lse = _call(q[queries], k[keys], v[keys], is_causal, mask, scale)
        out[queries], lse[:, queries] = part, part_lse
    for queries, keys in _prompt_parts(cu_seqlens, cu_groups):
        part, part_lse = _call(q[queries], k[keys], v[keys], False, None, scale)
        joined = torch.logaddexp(lse[:, queries], part_lse)
        own_weight = (lse[:, queries] - joined).exp().t().unsqueeze(-1)
        merged = torch.lerp(part.float(), out[queries].float(), own_weight)
        out[queries], lse[:, queries] = merged.to(out.dtype), joined
    return out, lse, torch.empty(0, dtype=torch.int32, device=q.device)


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
    """dq, dk, dv; each call adds its part."""
    grads = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
    parts = list(_own_parts(cu_seqlens, causal, window, q.dtype))
    parts += [(rows, keys, False, None) for rows, keys in _prompt_parts(cu_seqlens, cu_groups)]
    for queries, keys, is_causal, mask in parts:
        found = _call_backward(
            dout[queries], q[queries], k[keys], v[keys], out[queries], lse[:, queries],
            is_causal, mask, scale,
        )  # fmt: skip
        for grad, where, part in zip(grads, (queries, keys, keys), found, strict=True):
            grad[where] += part
    dq, dk, dv = (grad.to(q.dtype) for grad in grads)
    return dq, dk, dv


def _own_parts(cu_seqlens: Tensor, causal: bool, window: int, dtype: torch.dtype) -> Iterator[Part]:
    """Each segment's own attention; with a window, in blocks that see a band of keys."""
    bounds = cu_seqlens.tolist()
    block = max(64, 2 * window)
    bands: dict[tuple[int, int, int], Tensor] = {}
    for first, end in zip(bounds[:-1], bounds[1:], strict=True):
        if window < 0 and first < end:
            yield slice(first, end), slice(first, end), causal, None
        for row in range(first, end, block) if window >= 0 else ():
            stop = min(row + block, end)
            low, high = max(first, row - window), stop if causal else min(end, stop + window)
            key = (stop - row, high - low, row - low)
            if key not in bands:
                bands[key] = _band(*key, causal, window, dtype)
            yield slice(row, stop), slice(low, high), False, bands[key]


def _band(
    rows: int, columns: int, offset: int, causal: bool, window: int, dtype: torch.dtype
) -> Tensor:
    """0 where query i + offset sees key j, otherwise -inf."""
    ahead = torch.arange(columns)[None, :] - torch.arange(rows)[:, None] - offset
    seen = (ahead.abs() <= window) & ((ahead <= 0) | (not causal))
    return torch.zeros(rows, columns, dtype=dtype).masked_fill(~seen, -torch.inf)


def _prompt_parts(cu_seqlens: Tensor, cu_groups: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """(all completions, prompt) of each group that has both."""
    if cu_groups is None:
        return
    bounds, groups = cu_seqlens.tolist(), cu_groups.tolist()
    for first, end in zip(groups[:-1], groups[1:], strict=True):
        prompt = slice(bounds[first], bounds[min(first + 1, end)])
        completions = slice(prompt.stop, bounds[end])
        if prompt.start < prompt.stop < completions.stop:
            yield completions, prompt


def _by_key_head(x: Tensor, n_kv_heads: int) -> Tensor:
    """[L, H, D] as [Hk, H / Hk, L, D], a view."""
    return x.unflatten(1, (n_kv_heads, -1)).permute(1, 2, 0, 3)


def _call(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """out [L, H, D] and lse [H, L] of one call."""
    n_kv_heads = k.shape[1]
    shaped = [_by_key_head(x, n_kv_heads) for x in (q, k, v)]
    repeats = shaped[0].shape[1]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        shaped[0],
        shaped[1].expand(-1, repeats, -1, -1),
        shaped[2].expand(-1, repeats, -1, -1),
        0.0,
        causal,
        attn_mask=mask,
        scale=scale,
    )
    return out.permute(2, 0, 1, 3).flatten(1, 2), lse.reshape(-1, len(q))


def _call_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What one call adds to dq [L, H, D], dk and dv [M, Hk, D]."""
    n_kv_heads = k.shape[1]
    dout, q, k, v, out = (_by_key_head(x, n_kv_heads) for x in (dout, q, k, v, out))
    repeats = q.shape[1]
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        dout,
        q,
        k.expand(-1, repeats, -1, -1),
        v.expand(-1, repeats, -1, -1),
        out,
        lse.unflatten(0, (n_kv_heads, -1)).contiguous(),
        0.0,
        causal,
        attn_mask=mask,
        scale=scale,
    )
    dk, dv = (x.sum(1).transpose(0, 1) for x in (dk, dv))
    return dq.permute(2, 0, 1, 3).flatten(1, 2), dk, dv
