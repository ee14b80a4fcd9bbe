"""What the benchmarks of the attention ops share: inputs, floating-point operations, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from bench.registry import Inputs, Provider

Attention = Callable[[Tensor, Tensor, Tensor, Inputs], Tensor]
"""q, k, v of the inputs, and the inputs -> out."""


def inputs_of(
    tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str
) -> Inputs:
    """Random q, k, v and upstream gradient."""
    shapes = {"q": heads, "k": kv_heads, "v": kv_heads, "dout": heads}
    return {
        name: torch.randn(tokens, count, head_dim, device=device).to(dtype)
        for name, count in shapes.items()
    }


def bounds(lengths: Sequence[int], device: str) -> Tensor:
    """cu_seqlens of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def flops(pairs: int, heads: int, head_dim: int) -> int:
    """Two products forward, five backward, of 2 * D operations for each pair of tokens and head."""
    return 14 * pairs * heads * head_dim


def bytes_moved(tokens: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Forward: q, k, v in, out. Backward: q, k, v, out, dout in, dq, dk, dv out."""
    return tokens * head_dim * itemsize * (5 * heads + 6 * kv_heads)


def forward_and_backward(attention: Attention, rows: str | None = None) -> Provider:
    """out, dq, dk, dv; with `rows`, of the tokens that this entry of the inputs names."""

    def run(inputs: Inputs) -> list[Tensor]:
        q, k, v = (inputs[name].detach().requires_grad_() for name in ("q", "k", "v"))
        out = attention(q, k, v, inputs)
        found = (out.detach(), *torch.autograd.grad(out, (q, k, v), inputs["dout"]))
        return list(found) if rows is None else [x[inputs[rows]] for x in found]

    return run


def exact_gradients(inputs: Inputs, parts: Sequence[tuple[slice, Tensor, Tensor]]) -> list[Tensor]:
    """out, dq, dk, dv in float64: per part its queries, keys and mask, one head at a time."""
    q, k, v, dout = (inputs[name].double() for name in ("q", "k", "v", "dout"))
    out, dq, dk, dv = (torch.zeros_like(x) for x in (q, q, k, v))
    repeats, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    for rows, keys, mask in parts:
        for head in range(q.shape[1]):
            kv = head // repeats
            scores = scale * q[rows, head] @ k[keys, kv].T
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            out[rows, head] = weights @ v[keys, kv]
            dweights = dout[rows, head] @ v[keys, kv].T
            dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) * scale
            dq[rows, head] = dscores @ k[keys, kv]
            dk[keys, kv] += dscores.T @ q[rows, head]
            dv[keys, kv] += weights.T @ dout[rows, head]
    return [out, dq, dk, dv]


def padded(inputs: Inputs, lengths: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
    """q, k, v, dout as [B, L, heads, D] with zeros behind, and which places are tokens [B, L]."""
    longest = max(lengths)
    place = torch.arange(longest, device=inputs["q"].device)
    is_token = place[None] < torch.tensor(lengths, device=place.device)[:, None]
    wide = {}
    for name in ("q", "k", "v", "dout"):
        wide[name] = inputs[name].new_zeros(len(lengths), longest, *inputs[name].shape[1:])
        wide[name][is_token] = inputs[name]
    return wide, is_token


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """torch's attention on [B, L, heads, D]; key heads are repeated, as the masked kernels need."""
    repeats = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(repeats, 2).transpose(1, 2) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=mask, is_causal=causal
    ).transpose(1, 2)


def segments(lengths: Sequence[int]) -> list[slice]:
    """Where each sequence is in the packed order."""
    return [slice(a, b) for a, b in pairwise(accumulate(lengths, initial=0))]
