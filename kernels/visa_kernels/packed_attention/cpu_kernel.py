"""Packed attention on the C++ extension: addresses, sizes and strides; no autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visa_kernels.dtypes import CODES


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
    from visa_kernels import _C

    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)
    bounds = _Bounds(cu_seqlens, cu_groups)
    _C.packed_attention(*_arguments(q, k, v, bounds, causal, window, scale, out, lse))
    return out, lse, torch.empty(0, dtype=torch.int32)


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
    """dq, dk, dv, contiguous."""
    from visa_kernels import _C

    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    grads = [torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v)]
    bounds = _Bounds(cu_seqlens, cu_groups)
    _C.packed_attention_gradient(
        *_arguments(q, k, v, bounds, causal, window, scale, out, lse),
        _heads(dout),
        *(grad.data_ptr() for grad in grads),
    )
    return grads[0], grads[1], grads[2]


class _Bounds:
    """cu_seqlens and cu_groups as C++ reads them, kept alive for the call."""

    def __init__(self, cu_seqlens: Tensor, cu_groups: Tensor | None) -> None:
        self.segments = cu_seqlens.to(torch.int64).contiguous()
        self.groups = None if cu_groups is None else cu_groups.to(torch.int64).contiguous()

    def arguments(self) -> tuple[int, int, int, int]:
        """Address and number of segments, then of groups."""
        groups = (0, 0) if self.groups is None else (self.groups.data_ptr(), len(self.groups) - 1)
        return (self.segments.data_ptr(), len(self.segments) - 1, *groups)


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: _Bounds,
    causal: bool,
    window: int,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> tuple[Any, ...]:
    tokens, heads, head_dim = q.shape
    return (
        _heads(q),
        _heads(k),
        _heads(v),
        (tokens, heads, k.shape[1], head_dim),
        *bounds.arguments(),
        causal,
        window,
        scale,
        CODES[q.dtype],
        torch.get_num_threads(),
        out.data_ptr(),
        lse.data_ptr(),
    )


def _heads(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)
