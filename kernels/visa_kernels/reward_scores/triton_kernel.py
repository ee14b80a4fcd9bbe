"""Reward scores in one Triton launch: a program scores the rows of a group, then its advantages.

The program's tile of rows is scored by triton_rows.py, its advantages come from triton_groups.py.
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
from visa_kernels.reward_scores.triton_groups import (
    centred_tile,
    long_group,
    place,
    scale_by_batch,
)
from visa_kernels.reward_scores.triton_rows import score_tile

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
        b = place(order, at, live)
        reward = score_tile(
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
            advantage = centred_tile(reward, live, count, eps, SCALE == 0)
            tl.store(scores + rows + b, advantage, mask=live)
    if ADVANTAGE and not ONE_TILE:
        tl.debug_barrier()
        if high > low:
            long_group(scores, order, low, high, lowest, rows, eps, SCALE == 0, BB)
    if ADVANTAGE and SCALE == 1:
        tl.debug_barrier()
        if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            scale_by_batch(scores, rows, eps, BATCH_ROWS)
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
    values, targets, fwd, bwd = (_rows_inplace(x) for x in (values, targets, fwd, bwd))
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


def _rows_inplace(x: Tensor) -> Tensor:
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
