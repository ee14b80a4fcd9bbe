"""Scores of a tile of completions, as device functions for the Triton kernel.

Legend: B completions, K value dimensions, C labels. A tile is BLOCK_B rows by BLOCK_K dimensions.
Optional tensors are None, which Triton takes as constants.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _guarded(dot, none, target_none):
    """Cosine where either vector may have no direction: 0 against one that has, else 1."""
    return tl.where(none | target_none, tl.where(none & target_none, 1.0, 0.0), dot)


@triton.jit
def _power(x, exponent):
    """x ** exponent of x >= 0."""
    zero = tl.where(exponent == 0.0, 1.0, 0.0)
    raised = tl.exp(exponent * tl.log(tl.where(x > 0.0, x, 1.0)))
    return tl.where(exponent == 1.0, x, tl.where(x > 0.0, raised, zero))


@triton.jit
def _probability(scores, row, live, stride, labels, label, LOGITS: tl.constexpr, BC: tl.constexpr):
    """P(entailment) of rows of the NLI output; 0 for a row of -1."""
    there = live & (row >= 0)
    if LOGITS:
        c = tl.arange(0, BC)[None, :]
        at = scores + row[:, None] * stride + c
        x = tl.load(at, mask=there[:, None] & (c < labels), other=float("-inf")).to(tl.float32)
        weight = tl.exp(x - tl.max(x, 1)[:, None])
        p = tl.sum(tl.where(c == label, weight, 0.0), 1) / tl.sum(weight, 1)
    else:
        p = tl.load(scores + row * stride, mask=there, other=0.0).to(tl.float32)
    return tl.where(there, p, 0.0)


@triton.jit
def _best_chunk(
    scores, rows, low, high, live, stride, labels, label, LOGITS: tl.constexpr, BC: tl.constexpr
):
    """Largest P(entailment) over pieces low .. high - 1; 0 of none, NaN where one is not finite."""
    best = tl.full(low.shape, float("-inf"), tl.float32)
    wrong = low != low
    for j in range(0, tl.max(tl.where(live, high - low, 0))):
        piece = low + j
        on = live & (piece < high)
        row = piece
        if rows is not None:
            row = tl.load(rows + piece, mask=on, other=-1).to(tl.int64)
        p = _probability(scores, row, on, stride, labels, label, LOGITS, BC)
        wrong |= on & ~_finite(p)
        best = tl.where(on, tl.maximum(best, p), best)
    return tl.where(wrong, float("nan"), tl.where(high > low, best, 0.0))


@triton.jit
def _entailment(
    scores, sentences, chunks, rows, b, live, stride, labels, label,
    LOGITS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """P(entailment) of completions b: the mean over sentences of the best chunk's."""
    if sentences is None:
        return _probability(scores, b, live, stride, labels, label, LOGITS, BC)
    else:
        low = tl.load(sentences + b, mask=live, other=0).to(tl.int64)
        high = tl.load(sentences + b + 1, mask=live, other=0).to(tl.int64)
        total = tl.zeros(low.shape, tl.float32)
        for i in range(0, tl.max(high - low)):
            at = low + i
            on = live & (at < high)
            first = tl.load(chunks + at, mask=on, other=0).to(tl.int64)
            end = tl.load(chunks + at + 1, mask=on, other=0).to(tl.int64)
            best = _best_chunk(scores, rows, first, end, on, stride, labels, label, LOGITS, BC)
            total += tl.where(on, best, 0.0)
        return total / tl.maximum(high - low, 1).to(tl.float32)


@triton.jit
def _values_of(values, value_rows, b, live, k, dims, stride, limit, ACTIVATION: tl.constexpr):
    """Values [BLOCK_B, BLOCK_K] on their scale; an infinite score becomes NaN."""
    row, there = b, live
    if value_rows is not None:
        row = tl.load(value_rows + b, mask=live, other=-1).to(tl.int64)
        there = live & (row >= 0)
    at = values + row[:, None] * stride + k[None, :]
    v = tl.load(at, mask=there[:, None] & (k < dims)[None, :], other=0.0).to(tl.float32)
    v = tl.where(_finite(v), v, float("nan"))
    if ACTIVATION == 1:
        v = tl.where(v > limit, limit, tl.where(v < -limit, -limit, v))
    if ACTIVATION == 2:
        shrunk = tl.exp(-2.0 * tl.abs(v))
        size = limit * (1.0 - shrunk) / (1.0 + shrunk)
        v = tl.where(v < 0.0, -size, size)
    return v


@triton.jit
def _value_terms(v, t, neutral_norm):
    """Cosine as measured and as paid, L2 distance, norms of values and target, per row."""
    norm = tl.sqrt_rn(tl.sum(v * v, 1))
    target_norm = tl.sqrt_rn(tl.sum(t * t, 1))
    none, target_none = norm <= 1e-8, target_norm <= 1e-8
    unit = v / tl.where(none, 1.0, norm)[:, None]
    target_unit = t / tl.where(target_none, 1.0, target_norm)[:, None]
    dot = tl.sum(unit * target_unit, 1)
    dot = tl.where(dot > 1.0, 1.0, tl.where(dot < -1.0, -1.0, dot))
    cosine = _guarded(dot, none, target_none)
    paid = _guarded(dot, none | (norm < neutral_norm), target_none)
    l2 = tl.sqrt_rn(tl.sum((v - t) * (v - t), 1))
    return cosine, paid, l2, norm, target_norm


@triton.jit
def _semantic(fwd, bwd, CONSISTENCY: tl.constexpr):
    if CONSISTENCY == 0:
        both = fwd * bwd
        return tl.sqrt_rn(tl.where(both < 0.0, 0.0, both))
    elif CONSISTENCY == 1:
        return tl.where(fwd < bwd, fwd, bwd)
    else:
        return (2.0 * fwd + bwd) / 3.0


@triton.jit
def _combined(paid, semantic, w_val, w_sem, gate, FORM: tl.constexpr):
    if FORM == 1:
        return _power((1.0 + paid) / 2.0, w_val) * _power(semantic, w_sem)
    else:
        if FORM == 2:
            paid = tl.where(semantic >= gate, paid, -1.0)
        return w_val * paid + w_sem * semantic


@triton.jit
def score_tile(
    values, value_rows, targets, fwd, fwd_sentences, fwd_chunks, fwd_rows,
    bwd, bwd_sentences, bwd_chunks, bwd_rows, penalty, worst, scores, bits,
    b, live, rows, dims, value_stride, target_stride, fwd_stride, fwd_labels,
    bwd_stride, bwd_labels, label, limit, w_val, w_sem, gate, neutral_norm, distance_weight,
    ACTIVATION: tl.constexpr, FORM: tl.constexpr, CONSISTENCY: tl.constexpr,
    WORST: tl.constexpr, FWD_LOGITS: tl.constexpr, BWD_LOGITS: tl.constexpr,
    BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Score completions b, write all but the advantage, and return their rewards."""
    k = tl.arange(0, BK)
    v = _values_of(values, value_rows, b, live, k, dims, value_stride, limit, ACTIVATION)
    at = targets + b[:, None] * target_stride + k[None, :]
    t = tl.load(at, mask=live[:, None] & (k < dims)[None, :], other=0.0).to(tl.float32)
    cosine, paid, l2, norm, target_norm = _value_terms(v, t, neutral_norm)
    ahead = _entailment(
        fwd, fwd_sentences, fwd_chunks, fwd_rows, b, live, fwd_stride, fwd_labels, label,
        FWD_LOGITS, BC,
    )  # fmt: skip
    back = _entailment(
        bwd, bwd_sentences, bwd_chunks, bwd_rows, b, live, bwd_stride, bwd_labels, label,
        BWD_LOGITS, BC,
    )  # fmt: skip
    semantic = _semantic(ahead, back, CONSISTENCY)
    reward = _combined(paid, semantic, w_val, w_sem, gate, FORM) - distance_weight * l2
    flags = tl.where(_finite(norm), 0, 1) + tl.where(_finite(ahead), 0, 2)
    flags += tl.where(_finite(back), 0, 4) + tl.where(_finite(target_norm), 0, 8)
    if penalty is not None:
        taken = tl.load(penalty + b, mask=live, other=0.0).to(tl.float32)
        reward -= taken
        flags += tl.where(_finite(taken), 0, 16)
    floor = -w_val
    if FORM == 1:
        floor = 0.0 * w_val
    reward = tl.where(reward < floor, floor, reward)
    if worst is not None:
        reward = tl.where(tl.load(worst + b, mask=live, other=0) != 0, floor, reward)
    flags = tl.where((flags == 0) & ~_finite(reward), 32, flags)
    if WORST:
        reward = tl.where(flags != 0, floor, reward)
    else:
        reward = tl.where(flags != 0, float("nan"), reward)
    tl.store(scores + b, reward, mask=live)
    tl.store(scores + 2 * rows + b, cosine, mask=live)
    tl.store(scores + 3 * rows + b, l2, mask=live)
    tl.store(scores + 4 * rows + b, ahead, mask=live)
    tl.store(scores + 5 * rows + b, back, mask=live)
    tl.store(scores + 6 * rows + b, semantic, mask=live)
    tl.store(bits + b, flags.to(tl.uint8), mask=live)
    return reward
