"""Reward scores in one Triton launch: a program scores the rows of a group, then its advantages.

Legend: B completions, K value dimensions, C labels. A tile is BLOCK_B rows by BLOCK_K dimensions.
Optional tensors are None, which Triton takes as constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visa_kernels import ticket
from visa_kernels.reward_scores.reference import OUTPUTS

_ACTIVATIONS = {"none": 0, "clamp": 1, "tanh": 2}
_FORMS = {"sum": 0, "product": 1, "gated": 2}
_CONSISTENCIES = {"geometric": 0, "min": 1, "published": 2}
_SCALES = {"group": 0, "batch": 1, "none": 2}

_TILE = 2048
"""Most elements of a tile: rows times dimensions."""
_RAGGED_ROWS = 16
"""Rows of a tile where group sizes are known to the device alone."""
_BATCH_ROWS = 1024
"""Rows of a tile of the last program, which scales by the batch's deviation."""


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
def _tile(
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


@triton.jit
def _place(order, at, live):
    """Row of each place in the order of groups."""
    if order is not None:
        return tl.load(order + at, mask=live, other=0).to(tl.int64)
    else:
        return at


@triton.jit
def _rewards_at(scores, order, start, high, BB: tl.constexpr):
    """Rows of the places start .. start + BB - 1, which of them are there, rewards in float64."""
    at = start + tl.arange(0, BB)
    live = at < high
    b = _place(order, at, live)
    return b, live, tl.load(scores + b, mask=live, other=0.0).to(tl.float64)


@triton.jit
def _centred_tile(reward, live, count, eps, GROUP_SCALE: tl.constexpr):
    """Advantages of a group that fits one tile; shifted by its lowest, so that equals give 0."""
    reward = reward.to(tl.float64)
    shifted = tl.where(live, reward - tl.min(tl.where(live, reward, float("inf")), 0), 0.0)
    centred = tl.where(live, shifted - tl.sum(shifted, 0) / count, 0.0)
    if GROUP_SCALE:
        variance = tl.sum(centred * centred, 0) / tl.maximum(count - 1.0, 1.0)
        centred = centred / (tl.sqrt(variance) + eps)
    return centred.to(tl.float32)


@triton.jit
def _long_group(
    scores, order, low, high, lowest, rows, eps, GROUP_SCALE: tl.constexpr, BB: tl.constexpr
):
    """Advantages of places low .. high - 1 from the rewards that this program has written."""
    count = (high - low).to(tl.float64)
    lowest = lowest.to(tl.float64)
    total, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    for start in range(low, high, BB):
        b, live, reward = _rewards_at(scores, order, start, high, BB)
        total += tl.sum(tl.where(live, reward - lowest, 0.0), 0)
    mean = total / count
    scale = tl.full([], 1.0, tl.float64)
    if GROUP_SCALE:
        for start in range(low, high, BB):
            b, live, reward = _rewards_at(scores, order, start, high, BB)
            centred = tl.where(live, reward - lowest - mean, 0.0)
            squares += tl.sum(centred * centred, 0)
        scale = tl.sqrt(squares / tl.maximum(count - 1.0, 1.0)) + eps
    for start in range(low, high, BB):
        b, live, reward = _rewards_at(scores, order, start, high, BB)
        advantage = ((reward - lowest - mean) / scale).to(tl.float32)
        tl.store(scores + rows + b, advantage, mask=live)


@triton.jit
def _shared_row(at, start, rows, BB: tl.constexpr):
    """A tile of a row of the scores in float64; .cg reads past this core's own cache."""
    i = start + tl.arange(0, BB).to(tl.int64)
    live = i < rows
    return live, tl.load(at + i, mask=live, other=0.0, cache_modifier=".cg").to(tl.float64)


@triton.jit
def _scale_by_batch(scores, rows, eps, BB: tl.constexpr):
    """Divide all advantages by the deviation of all rewards."""
    first = tl.load(scores, cache_modifier=".cg").to(tl.float64)
    total, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    for start in range(0, rows, BB):
        live, reward = _shared_row(scores, start, rows, BB)
        total += tl.sum(tl.where(live, reward - first, 0.0), 0)
    mean = total / rows
    for start in range(0, rows, BB):
        live, reward = _shared_row(scores, start, rows, BB)
        centred = tl.where(live, reward - first - mean, 0.0)
        squares += tl.sum(centred * centred, 0)
    scale = tl.sqrt(squares / tl.maximum(rows - 1, 1)) + eps
    for start in range(0, rows, BB):
        live, advantage = _shared_row(scores + rows, start, rows, BB)
        i = start + tl.arange(0, BB).to(tl.int64)
        tl.store(scores + rows + i, (advantage / scale).to(tl.float32), mask=live)


@triton.jit
def reward_scores_kernel(
    values, value_rows, targets, fwd, fwd_sentences, fwd_chunks, fwd_rows,
    bwd, bwd_sentences, bwd_chunks, bwd_rows, penalty, worst, cu_groups, order,
    scores, bits, arrived,
    rows, group_size, dims, value_stride, target_stride, fwd_stride, fwd_labels,
    bwd_stride, bwd_labels, label, limit, w_val, w_sem, gate, neutral_norm, distance_weight, eps,
    ACTIVATION: tl.constexpr, FORM: tl.constexpr, CONSISTENCY: tl.constexpr, SCALE: tl.constexpr,
    WORST: tl.constexpr, FWD_LOGITS: tl.constexpr, BWD_LOGITS: tl.constexpr,
    ADVANTAGE: tl.constexpr, ONE_TILE: tl.constexpr,
    BB: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BATCH_ROWS: tl.constexpr,
):  # fmt: skip
    """Program g scores group g, or tile g where there are no groups; see `op.reward_scores`.

    With SCALE 1 the program that arrives last, counted in `arrived` (see `visa_kernels.ticket`),
    divides by the batch's deviation, so that one launch is enough.
    """
    group = tl.program_id(0).to(tl.int64)
    if cu_groups is None:
        low = group * group_size
        high = tl.minimum(low + group_size, rows).to(tl.int64)
    else:
        low = tl.load(cu_groups + group).to(tl.int64)
        high = tl.load(cu_groups + group + 1).to(tl.int64)
    lowest = float("inf")
    for start in range(low, high, BB):
        at = start + tl.arange(0, BB)
        live = at < high
        b = _place(order, at, live)
        reward = _tile(
            values, value_rows, targets, fwd, fwd_sentences, fwd_chunks, fwd_rows,
            bwd, bwd_sentences, bwd_chunks, bwd_rows, penalty, worst, scores, bits,
            b, live, rows, dims, value_stride, target_stride, fwd_stride, fwd_labels,
            bwd_stride, bwd_labels, label, limit, w_val, w_sem, gate, neutral_norm,
            distance_weight, ACTIVATION, FORM, CONSISTENCY, WORST, FWD_LOGITS, BWD_LOGITS,
            BK, BC,
        )  # fmt: skip
        lowest = tl.minimum(lowest, tl.min(tl.where(live, reward, float("inf")), 0))
        if ADVANTAGE and ONE_TILE:
            count = (high - low).to(tl.float64)
            advantage = _centred_tile(reward, live, count, eps, SCALE == 0)
            tl.store(scores + rows + b, advantage, mask=live)
    if ADVANTAGE and not ONE_TILE:
        tl.debug_barrier()
        if high > low:
            _long_group(scores, order, low, high, lowest, rows, eps, SCALE == 0, BB)
    if ADVANTAGE and SCALE == 1:
        tl.debug_barrier()
        if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            _scale_by_batch(scores, rows, eps, BATCH_ROWS)
            tl.store(arrived, 0)


def reward_scores(
    *,
    values: Tensor,
    targets: Tensor,
    fwd: Tensor,
    bwd: Tensor,
    cu_groups: Tensor | None,
    order: Tensor | None,
    group_size: int,
    entailment: int,
    activation: str,
    form: str,
    consistency: str,
    non_finite: str,
    scale: str,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """(scores [7, B], bits [B] uint8), as the reference; see `op.reward_scores`."""
    rows, dims = targets.shape
    scores = torch.empty(len(OUTPUTS), rows, dtype=torch.float32, device=values.device)
    bits = torch.empty(rows, dtype=torch.uint8, device=values.device)
    if not rows:
        return scores, bits
    values, targets, fwd, bwd = (_rows_in_place(x) for x in (values, targets, fwd, bwd))
    others = {name: _flat(x) if isinstance(x, Tensor) else x for name, x in others.items()}
    batch = scale == "batch"
    meta = _tiles(dims, group_size, cu_groups is not None, batch)
    programs = len(cu_groups) - 1 if cu_groups is not None else -(-rows // meta["group_size"])
    widest = max(x.shape[1] if x.ndim == 2 else 1 for x in (fwd, bwd))
    arrived = ticket.counters(values.device) if batch else None
    reward_scores_kernel[(programs,)](
        values=values,
        targets=targets,
        fwd=fwd,
        bwd=bwd,
        cu_groups=_flat(cu_groups),
        order=order,
        scores=scores,
        bits=bits,
        arrived=arrived,
        rows=rows,
        dims=dims,
        value_stride=values.stride(0),
        target_stride=targets.stride(0),
        fwd_stride=fwd.stride(0),
        fwd_labels=fwd.shape[1] if fwd.ndim == 2 else 1,
        bwd_stride=bwd.stride(0),
        bwd_labels=bwd.shape[1] if bwd.ndim == 2 else 1,
        label=entailment,
        ACTIVATION=_ACTIVATIONS[activation],
        FORM=_FORMS[form],
        CONSISTENCY=_CONSISTENCIES[consistency],
        SCALE=_SCALES[scale],
        WORST=non_finite == "worst",
        FWD_LOGITS=fwd.ndim == 2,
        BWD_LOGITS=bwd.ndim == 2,
        ADVANTAGE=bool(group_size) or cu_groups is not None,
        BC=triton.next_power_of_2(widest),
        **others,
        **meta,
    )
    return scores, bits


def _rows_in_place(x: Tensor) -> Tensor:
    """A tensor whose rows are contiguous; any distance between rows will do."""
    return x if x.ndim == 1 or x.stride(1) == 1 else x.contiguous()


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _tiles(dims: int, group_size: int, ragged: bool, batch: bool) -> dict[str, Any]:
    """Tile sizes and warps. A program of a few rows needs one warp; the batch's scale four."""
    block_k = triton.next_power_of_2(max(dims, 2))
    most = max(_TILE // block_k, 1)
    wanted = _RAGGED_ROWS if ragged else triton.next_power_of_2(group_size or most)
    block_b = min(wanted, most)
    return {
        "group_size": group_size or block_b,
        "ONE_TILE": not ragged and group_size <= block_b,
        "BB": block_b,
        "BK": block_k,
        "BATCH_ROWS": _BATCH_ROWS,
        "num_warps": 4 if batch or block_b * block_k > 512 else 1,
    }


_POINTERS = {
    "values": "*bf16", "targets": "*fp32", "fwd": "*bf16", "bwd": "*bf16", "scores": "*fp32",
    "bits": "*u8",
}  # fmt: skip
_OPTIONAL = {
    "value_rows": "*i64", "fwd_sentences": "*i64", "fwd_chunks": "*i64", "fwd_rows": "*i64",
    "bwd_sentences": "*i64", "bwd_chunks": "*i64", "bwd_rows": "*i64", "penalty": "*fp32",
    "worst": "*i1", "cu_groups": "*i64", "order": "*i64", "arrived": "*i32",
}  # fmt: skip
_INTEGERS = (
    "rows", "group_size", "dims", "value_stride", "target_stride", "fwd_stride", "fwd_labels",
    "bwd_stride", "bwd_labels", "label",
)  # fmt: skip
_NUMBERS = ("limit", "w_val", "w_sem", "gate", "neutral_norm", "distance_weight", "eps")


def compile_cases() -> Iterable[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """Configurations for the compile gate: groups of 8, ragged groups with everything, batch."""
    yield _case("groups of 8", {"penalty", "worst"}, 8, form="sum", scale="group")
    yield _case("ragged", set(_OPTIONAL) - {"arrived"}, 0, form="gated", scale="group")
    yield _case("batch", {"arrived"}, 64, form="product", scale="batch", consistency="min")


def _case(
    name: str,
    present: set[str],
    group_size: int,
    *,
    form: str,
    scale: str,
    consistency: str = "geometric",
) -> tuple[str, Any, dict[str, str], dict[str, Any], int, int]:
    meta = _tiles(10, group_size, "cu_groups" in present, scale == "batch")
    meta.pop("group_size")
    warps = meta.pop("num_warps")
    constants = meta | {
        "ACTIVATION": _ACTIVATIONS["tanh"],
        "FORM": _FORMS[form],
        "CONSISTENCY": _CONSISTENCIES[consistency],
        "SCALE": _SCALES[scale],
        "WORST": False,
        "FWD_LOGITS": True,
        "BWD_LOGITS": True,
        "ADVANTAGE": True,
        "BC": 4,
        **dict.fromkeys(set(_OPTIONAL) - present),
    }
    types = (
        _POINTERS
        | {name: kind for name, kind in _OPTIONAL.items() if name in present}
        | dict.fromkeys(_INTEGERS, "i32")
        | dict.fromkeys(_NUMBERS, "fp32")
    )
    signature = {name: types.get(name, "constexpr") for name in reward_scores_kernel.arg_names}
    return name, reward_scores_kernel, signature, constants, warps, 3
