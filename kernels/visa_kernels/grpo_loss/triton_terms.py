"""Terms of the policy losses and their derivatives, as device functions for Triton kernels.

One token at a time, in float32, on tensors of any shape or on scalars. All are small functions that
a kernel picks by constexpr, so that every fused head uses the same formulas. How to use them:

    d = cut_log_ratio(logp, old)
    term, slope, low, high = token_term(logp, old, adv, lo, hi, dual, SURROGATE)
    weight, outside = bounded_weight(cut_log_ratio(old, sampler), w_low, w_cap, MASKED)
    kl, kl_slope = k3(logp, ref)
    loss     += (term * weight + beta * kl) * share
    dlogp     = (slope * weight + beta * kl_slope) * share

`share` is 1 / normalizer, over the row's counted tokens too where `ROW_MEAN`. The bounds are
lo = 1 - clip_low, hi = 1 + clip_high, and dual > 1, or inf for none. Zero masked tokens' inputs
BEFORE calling (tl.where), and their term and slope after: what stands there may be NaN.

gspo clips the row, not the token: with m the mean of the row's cut log-ratios over its n counted
tokens, `sequence_term(m, adv, lo, hi, dual)` gives the term that each of them has and its slope in
m. With token weights w_t, each counted token's dlogp is slope * mean(w_t) * share (share has the
1 / n already: n terms move with m, m with each logp by 1 / n), zero where the token's own log-ratio
was cut (`inside_cut`). A sequence weight is `bounded_weight` of the
sum, or of the mean, of the row's old - sampler, cut after it is summed (`cut`).

`adv` has the shape of logp: triton's interpreter cannot broadcast comparisons of scalars.
NaN goes through everywhere: comparisons and tl.where are used in place of min and max.
"""

from __future__ import annotations

import triton
import triton.language as tl

LIMIT = tl.constexpr(20.0)
SERIES_BELOW = tl.constexpr(0.25)

CLIP_TOKENS = tl.constexpr(0)
CLIP_SEQUENCES = tl.constexpr(1)
CLIP_WEIGHTS = tl.constexpr(2)

SURROGATES = {
    "grpo": 0,
    "bnpo": 0,
    "dapo": 0,
    "dr_grpo": 0,
    "gspo": 1,
    "cispo": 2,
}
"""Value of the constexpr SURROGATE for each loss type."""

ROW_MEAN = {"grpo", "gspo"}
"""Loss types whose rows are averaged over their tokens; the others sum them."""


@triton.jit
def cut(d):
    """d cut to [-LIMIT, LIMIT]; NaN stays NaN."""
    return tl.where(d > LIMIT, LIMIT, tl.where(d < -LIMIT, -LIMIT, d))


@triton.jit
def cut_log_ratio(logp, other):
    return cut(logp - other)


@triton.jit
def inside_cut(d):
    """1 where `cut` leaves d and its gradient as they are, else 0."""
    return tl.where(tl.abs(d) > LIMIT, 0.0, 1.0)


@triton.jit
def clip_ratio(ratio, adv, lo, hi, dual):
    """-min(r A, clip(r) A), for A < 0 at most -dual A (arXiv:1912.09729, eq. 5).

    Returns value, dvalue/dratio, and whether the low and the high bound act.
    """
    plain = ratio * adv
    clipped = tl.where(ratio < lo, lo, tl.where(ratio > hi, hi, ratio)) * adv
    follows = plain <= clipped
    far = (adv < 0) & (ratio > dual)
    value = tl.where(far, -dual * adv, -tl.where(follows, plain, clipped))
    slope = tl.where(follows & ~far, -adv, 0.0)
    return value, slope, (ratio < lo) & (adv < 0), (ratio > hi) & (adv > 0)


@triton.jit
def clip_tokens(logp, old, adv, lo, hi, dual):
    """Term of grpo, bnpo, dapo and dr_grpo, its derivative in logp, and the clip's flags."""
    d = logp - old
    ratio = tl.exp(cut(d))
    value, slope, low, high = clip_ratio(ratio, adv, lo, hi, dual)
    return value, slope * ratio * inside_cut(d), low, high


@triton.jit
def clip_weights(logp, old, adv, lo, hi):
    """Term of cispo: the clipped ratio is a constant weight of A logp (arXiv:2506.13585)."""
    ratio = tl.exp(cut_log_ratio(logp, old))
    weight = tl.where(ratio < lo, lo, tl.where(ratio > hi, hi, ratio))
    slope = -weight * adv
    return slope * logp, slope, (ratio < lo) & (adv < 0), (ratio > hi) & (adv > 0)


@triton.jit
def token_term(logp, old, adv, lo, hi, dual, SURROGATE: tl.constexpr):
    """Term, dterm/dlogp, low, high of a loss type that needs nothing but the token itself."""
    if SURROGATE == CLIP_WEIGHTS:
        return clip_weights(logp, old, adv, lo, hi)
    else:
        return clip_tokens(logp, old, adv, lo, hi, dual)


@triton.jit
def sequence_term(mean_log_ratio, adv, lo, hi, dual):
    """Term of gspo for a row (arXiv:2507.18071, eq. 5), its derivative in the mean, the flags."""
    ratio = tl.exp(mean_log_ratio)
    value, slope, low, high = clip_ratio(ratio, adv, lo, hi, dual)
    return value, slope * ratio, low, high


@triton.jit
def exp_less_tangent(x):
    """e^x - 1 - x, by its series near 0, where the difference would lose its digits."""
    series = x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720)))))
    return tl.where(tl.abs(x) < SERIES_BELOW, series, tl.exp(x) - 1.0 - x)


@triton.jit
def k3(logp, ref):
    """k3 estimate of KL(policy || ref), e^x - 1 - x with x = ref - logp, and its derivative."""
    d = ref - logp
    x = cut(d)
    return exp_less_tangent(x), (1.0 - tl.exp(x)) * inside_cut(d)


@triton.jit
def bounded_weight(log_weight, low, cap, MASKED: tl.constexpr):
    """Sampler correction from a cut log-weight: its value, and 1 where it is outside [low, cap].

    Truncated to the band, or 0 outside of it where MASKED.
    """
    weight = tl.exp(log_weight)
    outside = (weight < low) | (weight > cap)
    if MASKED:
        bounded = tl.where(outside, 0.0, weight)
    else:
        bounded = tl.where(weight < low, low, tl.where(weight > cap, cap, weight))
    return bounded, outside.to(tl.float32)
