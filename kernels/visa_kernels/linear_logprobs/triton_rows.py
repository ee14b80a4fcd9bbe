"""Device functions over one row of a head's matrix product, shared by the kernels of both ops.

Symbols: x_j the logit before the temperature (bias and softcap applied), b = 1 / temperature,
d_j = (x_j - shift) b, log p_j = d_j - log_sum. A shift is right when it is within SLACK / b of the
largest x. The chosen token's own logit, or the largest of the first block, nearly always is: tokens
are drawn from about this distribution. So a row is summed up with that guess, no lane waiting for
another, its true maximum is found on the way, and the rare row that was guessed wrong is summed
once more. A row has V entries and W addressable ones, W a multiple of 16 on a GPU: loads and stores
masked by it are whole vectors. What stands past V is never used.
"""

from __future__ import annotations

import triton
import triton.language as tl

SLACK = tl.constexpr(10.0)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def bend(x, cap):
    """cap * tanh(x / cap) by exp(-2|x| / cap), which cannot overflow; NaN stays NaN."""
    y = x / cap
    e = tl.exp(-2.0 * tl.abs(y))
    square = y * y
    series = y * (1.0 - square * (1.0 / 3 - square * (2.0 / 15)))
    large = (1.0 - e) / (1.0 + e)
    return cap * tl.where(tl.abs(y) < 0.04, series, tl.where(y < 0, -large, large))


@triton.jit
def logits_at(
    x_ptr, bias_ptr, at, V, W, cap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, WHOLE: tl.constexpr, POLICY: tl.constexpr,
):
    """Logits of a block in float32; anything past V, nothing of which is there where WHOLE.

    POLICY says what L2 should do with the row.
    """
    if WHOLE:
        x = tl.load(x_ptr + at, eviction_policy=POLICY).to(tl.float32)
    else:
        x = tl.load(x_ptr + at, mask=at < W, other=0.0, eviction_policy=POLICY).to(tl.float32)
    if HAS_BIAS:
        if WHOLE:
            x += tl.load(bias_ptr + at)
        else:
            x += tl.load(bias_ptr + at, mask=at < V, other=0.0)
    if HAS_CAP:
        x = bend(x, cap)
    return x


@triton.jit
def token_logit(
    x_ptr, bias_ptr, token, V, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr
):
    """Logit of one token; NaN for one outside the vocabulary."""
    known = (token >= 0) & (token < V)
    x = tl.load(x_ptr + token, mask=known, other=float("nan")).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + token, mask=known, other=0.0)
    if HAS_CAP:
        x = bend(x, cap)
    return x


@triton.jit
def add_block(x, shift, b, sums, weighted, top):
    """Add e^d and d e^d, the latter in units of ln 2, to each lane's sums; keep the largest x."""
    d = (x - shift) * (b * LOG2E)
    e = tl.exp2(d)
    # A token that cannot be drawn has d = -inf and e = 0, whose product must be 0.
    weighted += e * tl.maximum(d, -1000.0)
    return sums + e, weighted, tl.maximum(top, x)


@triton.jit
def sweep(
    x_ptr, bias_ptr, V, W, b, cap, shift, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    """Sums of e^d and d e^d over a row, and its largest logit; NaN left out of the latter."""
    sums = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    whole = V // BLOCK * BLOCK
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        x = logits_at(x_ptr, bias_ptr, at, V, W, cap, HAS_BIAS, HAS_CAP, True, "evict_last")
        sums, weighted, top = add_block(x, shift, b, sums, weighted, top)
    if whole < V:
        at = whole + tl.arange(0, BLOCK)
        x = logits_at(x_ptr, bias_ptr, at, V, W, cap, HAS_BIAS, HAS_CAP, False, "evict_last")
        x = tl.where(at < V, x, -float("inf"))
        sums, weighted, top = add_block(x, shift, b, sums, weighted, top)
    return tl.sum(sums, 0), tl.sum(weighted, 0) * LN2, tl.max(top, 0)


@triton.jit
def row_statistics(
    x_ptr, bias_ptr, token, V, W, b, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    """log p of the token, entropy, shift and log_sum: one read, which asks L2 to keep the row."""
    chosen = token_logit(x_ptr, bias_ptr, token, V, cap, HAS_BIAS, HAS_CAP)
    at = tl.arange(0, BLOCK)
    x = logits_at(x_ptr, bias_ptr, at, V, W, cap, HAS_BIAS, HAS_CAP, False, "evict_last")
    guess = tl.max(tl.where(at < V, x, -float("inf")), 0)
    guess = tl.where(chosen > guess, chosen, guess)
    shift = tl.where(tl.abs(guess) < float("inf"), guess, 0.0)
    total, weighted, top = sweep(
        x_ptr, bias_ptr, V, W, b, cap, shift, HAS_BIAS, HAS_CAP, BLOCK, STAGES
    )
    if tl.abs(top - shift) * b > SLACK:
        # Rows of -inf alone end as 0 / 0, which is NaN, as torch has it; so do rows with +inf.
        shift = tl.where(top == -float("inf"), 0.0, top)
        total, weighted, top = sweep(
            x_ptr, bias_ptr, V, W, b, cap, shift, HAS_BIAS, HAS_CAP, BLOCK, STAGES
        )
    log_sum = tl.log(total)
    return (chosen - shift) * b - log_sum, log_sum - weighted / total, shift, log_sum


@triton.jit
def row_gradient(
    x_ptr, bias_ptr, token, V, W, b, cap, logp_of_token, shift, log_sum, entropy, g, g_entropy,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    """Replace the row by the gradient of g log p[token] + g_entropy H:

    b (g [j = token] - p_j (g + g_entropy (log p_j + H))) (1 - (x_j / cap)^2)

    The token's own entry is written by itself, after the others.
    """
    for start in tl.range(0, W, BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        x = logits_at(x_ptr, bias_ptr, at, V, W, cap, HAS_BIAS, HAS_CAP, False, "evict_first")
        dx = entry_gradient(
            x, (x - shift) * b - log_sum, 0.0, b, cap, entropy, g, g_entropy,
            HAS_CAP, HAS_ENTROPY,
        )
        tl.store(x_ptr + at, dx.to(x_ptr.dtype.element_ty), mask=at < W)
    tl.debug_barrier()
    x = (logp_of_token + log_sum) / b + shift
    dx = entry_gradient(
        x, logp_of_token, g, b, cap, entropy, g, g_entropy, HAS_CAP, HAS_ENTROPY
    )
    known = (token >= 0) & (token < V)
    tl.store(x_ptr + token, dx.to(x_ptr.dtype.element_ty), mask=known)


@triton.jit
def entry_gradient(
    x, logp, own, b, cap, entropy, g, g_entropy,
    HAS_CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr,
):
    """Gradient of entries with logit x and log p; `own` is g for the chosen token, else 0."""
    factor = g
    if HAS_ENTROPY:
        factor += g_entropy * (tl.maximum(logp, -1000.0) + entropy)
    dx = (own - tl.exp(logp) * factor) * b
    if HAS_CAP:
        bent = x / cap
        dx *= 1.0 - bent * bent
    return dx


@triton.jit
def row_of_zeros(x_ptr, W, BLOCK: tl.constexpr):
    zeros = tl.zeros([BLOCK], tl.float32).to(x_ptr.dtype.element_ty)
    for start in tl.range(0, W, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(x_ptr + at, zeros, mask=at < W)
