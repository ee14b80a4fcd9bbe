"""torch's own variable-length attention (torch.nn.attention.varlen), where it can serve a call."""

from __future__ import annotations

import inspect
from functools import cache

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)


def why_no_varlen() -> str | None:
    """None where torch has it, otherwise why not; for `Backend.why_not`."""
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError as error:
        return f"this torch has no torch.nn.attention.varlen: {error}"
    return None


def why_not(q: Tensor, max_seqlen: int | None) -> str | None:
    """None where torch's kernel takes this call, otherwise the reason it cannot."""
    if q.dtype not in DTYPES:
        return f"it takes float16 and bfloat16, not {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"it takes head sizes that are multiples of 8 up to 256, not {q.shape[-1]}"
    if max_seqlen is None:
        return "it must be told max_seqlen, so that nothing is read back from the device"
    return None


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    window: int,
    scale: float,
    max_seqlen: int | None,
) -> Tensor:
    """out [N, H, D]; raises ValueError for a call that torch's kernel does not take."""
    from torch.nn.attention.varlen import varlen_attn

    reason = why_not(q, max_seqlen)
    if reason is not None:
        raise ValueError(f"backend 'varlen' cannot run this call: {reason}")
    bounds = cu_seqlens.to(torch.int32)
    grouped = {"enable_gqa": True} if _says_gqa() and q.shape[1] != k.shape[1] else {}
    return varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        max_seqlen,
        max_seqlen,
        scale=scale,
        window_size=(window, 0 if causal else window),
        **grouped,
    )


@cache
def _says_gqa() -> bool:
    """Later versions of torch want to be told of grouped heads; earlier ones take them as such."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
