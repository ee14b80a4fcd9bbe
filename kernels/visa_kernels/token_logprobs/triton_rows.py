"""Softmax of one row of logits in Triton: statistics in one read, and the gradient of a tile.

For a row x [V] and inverse temperature b, d_j = (x_j - shift) b and log p_j = d_j - log_sum, with
shift the row's maximum. Shared by token_logprobs and the fused loss heads.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-126.0)
"""exp below it is 0 in float32; -inf is cut here, since 0 * -inf would be NaN."""


@triton.jit
def row_stats(x_ptr, V, b, ENTROPY: tl.constexpr, BLOCK: tl.constexpr):
    """Shift, log-sum and entropy (nats; 0 without ENTROPY) of the row at x_ptr, in one read.

    Sums are kept per lane; only the maximum is exchanged between threads in each step. A NaN or
    +inf, or -inf alone, gives NaN.
    """
    at = tl.arange(0, BLOCK)
    shift = -float("inf")
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, V, BLOCK):
        inside = start + at < V
        x = tl.load(x_ptr + start + at, mask=inside, other=-float("inf")).to(tl.float32)
        new = tl.maximum(shift, tl.max(x, 0))
        # While only -inf was seen, 0 stands in for the shift: exp(-inf - 0) is 0.
        safe = tl.where(new == -float("inf"), 0.0, new)
        drop = tl.where(shift == -float("inf"), 0.0, (shift - safe) * b)
        scale = tl.exp(drop)
        d = (x - safe) * b
        e = tl.exp(d)
        if ENTROPY:
            cut = tl.where(d < LOWEST, LOWEST, d)
            weighted = scale * (weighted + drop * sums) + cut * e
        sums = scale * sums + e
        shift = new
    total = tl.sum(sums, 0)
    log_sum = tl.log(total)
    entropy = 0.0
    if ENTROPY:
        entropy = log_sum - tl.sum(weighted, 0) / total
    return shift, log_sum, entropy


@triton.jit
def tile_gradient(x, hit, shift, log_sum, entropy, g_logp, g_entropy, b, ENTROPY: tl.constexpr):
    """Gradient of g_logp log p[id] + g_entropy H for a tile x (float32) of the row.

    `hit` is true at id: dx_j = b (g_logp [j = id] - p_j (g_logp + g_entropy (log p_j + H))).
    """
    d = (x - shift) * b
    logp = tl.where(d < LOWEST, LOWEST, d) - log_sum
    weight = g_logp
    if ENTROPY:
        weight = g_logp + g_entropy * (logp + entropy)
    return b * (tl.where(hit, g_logp, 0.0) - tl.exp(d - log_sum) * weight)
