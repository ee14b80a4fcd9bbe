"""What the tests of the attention ops share: float64 softmax row by row, and the error budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Sees = Callable[[int, int], bool]
"""Whether query token i sees key token j."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs of one call and the upstream gradient, all of one dtype on the CPU."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    scale: float

    def on(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as leaves on a device."""
        return tuple(x.to(device).detach().requires_grad_() for x in (self.q, self.k, self.v))


def problem(
    n_tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> Problem:
    """Random inputs whose scores have a standard deviation of 2: softmax is far from flat."""
    shapes = [(n_tokens, heads, head_dim), *[(n_tokens, kv_heads, head_dim)] * 2]
    q, k, v = (torch.randn(shape).to(dtype) for shape in shapes)
    return Problem(q=q, k=k, v=v, dout=torch.randn(shapes[0]).to(dtype), scale=2 / head_dim**0.5)


def mask_of(n_tokens: int, sees: Sees) -> Tensor:
    """[N, N] bool from a rule, one pair of tokens at a time."""
    rows = [[sees(i, j) for j in range(n_tokens)] for i in range(n_tokens)]
    return torch.tensor(rows, dtype=torch.bool).reshape(n_tokens, n_tokens)


def by_hand(p: Problem, mask: Tensor) -> list[np.ndarray]:
    """out, dq, dk, dv in float64: one head and one query at a time, from the softmax's Jacobian."""
    q, k, v, dout = (x.double().numpy() for x in (p.q, p.k, p.v, p.dout))
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    per_kv = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        kv = head // per_kv
        for i in range(len(q)):
            keys = np.flatnonzero(mask[i].numpy())
            scores = p.scale * (k[keys, kv] @ q[i, head])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out[i, head] = weights @ v[keys, kv]
            dweights = v[keys, kv] @ dout[i, head]
            dscores = weights * (dweights - weights @ dweights) * p.scale
            dq[i, head] = dscores @ k[keys, kv]
            dk[keys, kv] += np.outer(dscores, q[i, head])
            dv[keys, kv] += np.outer(weights, dout[i, head])
    return [out, dq, dk, dv]


def by_sdpa(p: Problem, mask: Tensor) -> list[Tensor]:
    """out, dq, dk, dv of torch's attention in the problem's dtype, with a dense mask."""
    q, k, v = p.on("cpu")
    repeats = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(repeats, 1).transpose(0, 1) for x in (k, v))
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=p.scale
    )[0].transpose(0, 1)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), p.dout)]


def by_op(p: Problem, op: Callable[..., Tensor], device: str) -> list[Tensor]:
    """out, dq, dk, dv of an op that takes q, k and v, brought back to the CPU."""
    q, k, v = p.on(device)
    out = op(q, k, v)
    assert out.shape == q.shape and out.dtype == q.dtype
    grads = torch.autograd.grad(out, (q, k, v), p.dout.to(device))
    return [x.detach().cpu() for x in (out, *grads)]


def check_budget(got: list[Tensor], p: Problem, mask: Tensor) -> None:
    """Each result's error against float64 is at most twice that of torch's attention in the same
    dtype, plus 4 units of rounding of the largest value.
    """
    exact, plain = by_hand(p, mask), by_sdpa(p, mask)
    for name, have, want, peer in zip(("out", "dq", "dk", "dv"), got, exact, plain, strict=True):
        if not want.size:
            continue
        largest = np.abs(want).max()
        margin = 4 * torch.finfo(p.q.dtype).eps * largest
        for norm in (np.max, lambda x: np.sqrt(np.mean(x * x))):
            mine = norm(np.abs(have.double().numpy() - want))
            theirs = norm(np.abs(peer.double().numpy() - want))
            assert mine <= 2 * theirs + margin, (name, mine, theirs, margin)
