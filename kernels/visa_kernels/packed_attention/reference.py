"""Attention of packed sequences in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, causal: bool, window: int, scale: float
) -> Tensor:
    """out [N, H, D]; see `op.packed_attention`. Memory grows with N^2."""
    mask_NN = own_segment(cu_seqlens, len(q), causal, window)
    return masked_attention(q, k, v, mask_NN, scale)


def own_segment(cu_seqlens: Tensor, n_tokens: int, causal: bool, window: int) -> Tensor:
    """Which tokens [N queries, N keys] see each other inside their segments; window -1 for none."""
    segment_N = segments(cu_seqlens, n_tokens)
    token_N = torch.arange(n_tokens, device=cu_seqlens.device)
    ahead_NN = token_N[None, :] - token_N[:, None]
    mask_NN = (segment_N[None, :] == segment_N[:, None]) & (segment_N < len(cu_seqlens) - 1)
    if causal:
        mask_NN = mask_NN & (ahead_NN <= 0)
    if window >= 0:
        mask_NN = mask_NN & (ahead_NN.abs() <= window)
    return mask_NN


def segments(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Segment of each token, int64 [N]; the number of segments for tokens past the last one."""
    token_N = torch.arange(n_tokens, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens.to(torch.int64), token_N, right=True) - 1


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask_NN: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T) v over the keys of each query's mask, 0 for a query without keys.

    Computed in float32, in float64 for float64.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    repeats = q.shape[1] // k.shape[1]
    keys, values = (x.to(dtype).repeat_interleave(repeats, 1) for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q.to(dtype) * scale, keys)
    weights = scores.masked_fill(~mask_NN, -torch.inf).softmax(-1)
    weights = weights.masked_fill(~mask_NN, 0.0)
    return torch.einsum("hnm,mhd->nhd", weights, values).to(q.dtype)
