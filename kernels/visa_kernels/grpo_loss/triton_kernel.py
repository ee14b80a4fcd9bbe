"""`grpo_loss` as one Triton launch: advantages, loss, its gradient and the metrics.

A program takes every P-th row and goes over it in tiles: once for the row's own sums, where the
loss type, the correction or the mask needs them, and once for terms and gradients. Sums stay in
registers until the program's last row. Each program leaves its sums in memory; the last one to
finish adds them in order, so that results are the same from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visa_kernels import ticket
from visa_kernels.group_advantages import triton_kernel as group_kernel
from visa_kernels.group_advantages.triton_kernel import advantage_of_row, batch_deviation
from visa_kernels.grpo_loss.torch_op import METRICS
from visa_kernels.grpo_loss.triton_terms import (
    CLIP_SEQUENCES,
    ROW_MEAN,
    SURROGATES,
    bounded_weight,
    cut,
    cut_log_ratio,
    exp_less_tangent,
    inside_cut,
    k3,
    sequence_term,
    token_term,
)
from visa_kernels.triton_version import OLD_TRITON

MAX_PROGRAMS = 2048
MAX_PROGRAMS_BATCH = 512
"""Fewer where each program reads all rewards."""
MAX_ROWS_BY_ID = 1024
"""With group_ids of more rows than this, `group_advantages` runs first, a launch of its own."""
MAX_GROUP = 4096
"""The same for groups of one size larger than this."""

CORRECTIONS = {"none": 0, "token": 1, "product": 2, "geometric": 3}
NONE, TOKEN, PRODUCT, GEOMETRIC = (tl.constexpr(i) for i in range(4))
GIVEN, BATCH = tl.constexpr(0), tl.constexpr(2)
SCALES = {"given": 0, "group": 1, "batch": 2, "none": 3}

# Where a program's sums stand: the metrics first, in their order, then what they are made of.
ESS, MAX, WEIGHTS2, COUNT, LOSS = (tl.constexpr(i) for i in (4, 5, 9, 10, 11))
SLOTS = 16

FAN, MAX_GROUPS = tl.constexpr(32), tl.constexpr(64)
assert MAX_PROGRAMS <= FAN.value * MAX_GROUPS.value < ticket.SIZE * FAN.value


@triton.jit
def _row_sums(
    logp_ptr, old_ptr, sampler_ptr, mask_ptr, start, length, w_low, w_cap,
    CORRECTION: tl.constexpr, MASK_OUTSIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Counted tokens of a row, and their sums of cut log-ratios, old - sampler, token weights."""
    count, ratios = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    to_sampler, weights = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for at in range(0, length, BLOCK):
        i = at + tl.arange(0, BLOCK)
        keep = i < length
        if mask_ptr is not None:
            keep = keep & (tl.load(mask_ptr + start + i, mask=keep, other=0) != 0)
        logp = tl.load(logp_ptr + start + i, mask=keep, other=0.0).to(tl.float32)
        old = tl.load(old_ptr + start + i, mask=keep, other=0.0).to(tl.float32)
        ratios += cut_log_ratio(logp, old)
        count += tl.where(keep, 1.0, 0.0)
        if CORRECTION != NONE:
            d = old - tl.load(sampler_ptr + start + i, mask=keep, other=0.0).to(tl.float32)
            to_sampler += d
            if CORRECTION == TOKEN:
                weight, _ = bounded_weight(cut(d), w_low, w_cap, MASK_OUTSIDE)
                weights += tl.where(keep, weight, 0.0)
    return tl.sum(count), tl.sum(ratios), tl.sum(to_sampler), tl.sum(weights)


@triton.jit
def _sum_parts(parts_ptr, stride, start, end, SLOTS: tl.constexpr, TILE: tl.constexpr):
    """Sum and largest value [SLOTS] of each slot over the parts start : end, at most TILE."""
    k, part = tl.arange(0, SLOTS), start + tl.arange(0, TILE)
    x = tl.load(
        parts_ptr + k[:, None] * stride + part[None, :],
        mask=(k <= LOSS)[:, None] & (part < end)[None, :],
        other=0.0,
        cache_modifier=".cg",
    )
    return tl.sum(x, axis=1), tl.max(x, axis=1)


@triton.jit
def _write_results(sums, largest, loss_ptr, metrics_ptr, SLOTS: tl.constexpr):
    """Loss and metrics from the sums of all programs."""
    k = tl.arange(0, SLOTS)
    count = tl.sum(tl.where(k == COUNT, sums, 0.0))
    weights = tl.sum(tl.where(k == ESS, sums, 0.0))
    weights2 = tl.sum(tl.where(k == WEIGHTS2, sums, 0.0))
    one_or_more = tl.where(count > 0, count, 1.0)
    # In this order nothing overflows: weights and weights2 reach e^20 and e^40 a token.
    ess = (weights / one_or_more) * (weights / tl.where(count > 0, weights2, 1.0))
    out = tl.where(k == ESS, ess, sums / one_or_more)
    tl.store(metrics_ptr + k, tl.where(k == MAX, largest, out), mask=k < WEIGHTS2)
    tl.store(loss_ptr, tl.sum(tl.where(k == LOSS, sums, 0.0)))


@triton.jit
def _finish(parts_ptr, counter_ptr, loss_ptr, metrics_ptr, pid, programs, SLOTS: tl.constexpr):
    """Add up what the programs left, in order: the last of every FAN programs adds theirs, the last
    of those adds the sums. A program's stores come before its ticket (barrier, then release), and
    whoever draws the last ticket sees them all (acquire)."""
    k = tl.arange(0, SLOTS)
    group, groups = pid // FAN, tl.cdiv(programs, FAN)
    start, end = group * FAN, tl.minimum(group * FAN + FAN, programs)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr + 1 + group, 1, sem="acq_rel") == end - start - 1:
        sums, largest = _sum_parts(parts_ptr, programs, start, end, SLOTS, FAN)
        group_parts_ptr = parts_ptr + SLOTS * programs
        tl.store(group_parts_ptr + k * groups + group, tl.where(k == MAX, largest, sums))
        tl.store(counter_ptr + 1 + group, 0)
        tl.debug_barrier()
        if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == groups - 1:
            sums, largest = _sum_parts(group_parts_ptr, groups, 0, groups, SLOTS, MAX_GROUPS)
            _write_results(sums, largest, loss_ptr, metrics_ptr, SLOTS)
            tl.store(counter_ptr, 0)


@triton.jit(do_not_specialize=["rows", "group_size"])
def grpo_loss_kernel(
    logp_ptr, old_ptr, scores_ptr, cu_ptr, norm_ptr, ref_ptr, sampler_ptr, entropy_ptr, mask_ptr,
    ids_ptr, score_mask_ptr, dlogp_ptr, parts_ptr, counter_ptr, loss_ptr, metrics_ptr,
    rows, group_size, share, lo, hi, dual, beta, w_low, w_cap, eps,
    SURROGATE: tl.constexpr, ROW_MEAN: tl.constexpr, CORRECTION: tl.constexpr,
    MASK_OUTSIDE: tl.constexpr, SCALE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows [B] of N packed tokens; pointers may be None where the argument is not in use."""
    BY_ROW: tl.constexpr = SURROGATE == CLIP_SEQUENCES
    SUMS_FIRST: tl.constexpr = (
        BY_ROW or CORRECTION >= PRODUCT or (ROW_MEAN and mask_ptr is not None)
    )
    pid, programs = tl.program_id(0), tl.num_programs(0)
    if norm_ptr is not None:
        share = 1.0 / tl.load(norm_ptr).to(tl.float32)
    deviation = tl.zeros([], tl.float64)
    if SCALE == BATCH:
        deviation = batch_deviation(scores_ptr, score_mask_ptr, rows)
    zero = tl.zeros([BLOCK], tl.float32)
    loss, count, low_sum, high_sum, k1_sum, k3_sum = zero, zero, zero, zero, zero, zero
    w_sum, w2_sum, largest = zero, zero, zero
    # These are in use only with options: added up tile by tile they take no registers without.
    outside_sum, kl_sum, h_sum = 0.0, 0.0, 0.0

    for row in range(pid, rows, programs):
        start = tl.load(cu_ptr + row).to(tl.int64)
        # Places within a row are 32-bit, which halves the registers that addresses take.
        length = (tl.load(cu_ptr + row + 1).to(tl.int64) - start).to(tl.int32)
        if SCALE == GIVEN:
            adv = tl.load(scores_ptr + row).to(tl.float32)
        else:
            adv = advantage_of_row(
                row, scores_ptr, ids_ptr, score_mask_ptr, rows, group_size, deviation, eps,
                SCALE, GROUP_BLOCK,
            )  # fmt: skip
        n = tl.maximum(length, 1).to(tl.float32)
        weight, outside, row_slope = 1.0, 0.0, 0.0
        if SUMS_FIRST:
            counted, ratios, to_sampler, weights = _row_sums(
                logp_ptr, old_ptr, sampler_ptr, mask_ptr, start, length, w_low, w_cap,
                CORRECTION, MASK_OUTSIDE, BLOCK,
            )  # fmt: skip
            n = tl.where(counted > 0, counted, 1.0)
            if CORRECTION >= PRODUCT:
                log_weight = to_sampler if CORRECTION == PRODUCT else to_sampler / n
                weight, outside = bounded_weight(cut(log_weight), w_low, w_cap, MASK_OUTSIDE)
            if BY_ROW:
                term, row_slope, low, high = sequence_term(ratios / n, adv, lo, hi, dual)
                mean_weight = weights / n if CORRECTION == TOKEN else weight
                row_slope = row_slope * mean_weight
        row_share = share / n if ROW_MEAN else share
        adv_tile = zero + adv

        for at in range(0, length, BLOCK):
            i = at + tl.arange(0, BLOCK)
            inside = i < length
            keep = inside
            if mask_ptr is not None:
                keep = inside & (tl.load(mask_ptr + start + i, mask=inside, other=0) != 0)
            logp = tl.load(logp_ptr + start + i, mask=inside, other=0.0).to(tl.float32)
            old = tl.load(old_ptr + start + i, mask=inside, other=0.0).to(tl.float32)
            logp, old = tl.where(keep, logp, 0.0), tl.where(keep, old, 0.0)
            sampler = old
            if sampler_ptr is not None:
                sampler = tl.load(sampler_ptr + start + i, mask=inside, other=0.0).to(tl.float32)
                sampler = tl.where(keep, sampler, 0.0)
            if CORRECTION == TOKEN:
                d_sampler = cut_log_ratio(old, sampler)
                w_N, outside_N = bounded_weight(d_sampler, w_low, w_cap, MASK_OUTSIDE)
            else:
                w_N, outside_N = weight, outside
            if BY_ROW:
                slope = row_slope * inside_cut(logp - old)
            else:
                term, slope, low, high = token_term(logp, old, adv_tile, lo, hi, dual, SURROGATE)
                slope = slope * w_N
            value = term * w_N
            if ref_ptr is not None:
                ref = tl.load(ref_ptr + start + i, mask=inside, other=0.0).to(tl.float32)
                kl, kl_slope = k3(logp, tl.where(keep, ref, 0.0))
                value, slope = value + beta * kl, slope + beta * kl_slope
                kl_sum += tl.sum(kl)
            tl.store(dlogp_ptr + start + i, tl.where(keep, slope * row_share, 0.0), mask=inside)

            d = logp - sampler
            w = tl.where(keep, tl.exp(cut(d)), 0.0)
            loss += tl.where(keep, value * row_share, 0.0)
            count += tl.where(keep, 1.0, 0.0)
            low_sum += tl.where(keep, low.to(tl.float32), 0.0)
            high_sum += tl.where(keep, high.to(tl.float32), 0.0)
            k1_sum -= d
            k3_sum += exp_less_tangent(cut(d))
            w_sum += w
            w2_sum += w * w
            largest = tl.where(tl.abs(d) > largest, tl.abs(d), largest)
            if CORRECTION != NONE:
                outside_sum += tl.sum(tl.where(keep, outside_N, 0.0))
            if entropy_ptr is not None:
                h = tl.load(entropy_ptr + start + i, mask=inside, other=0.0).to(tl.float32)
                h_sum += tl.sum(tl.where(keep, h, 0.0))

    out = parts_ptr + pid
    tl.store(out, tl.sum(low_sum))
    tl.store(out + 1 * programs, tl.sum(high_sum))
    tl.store(out + 2 * programs, tl.sum(k1_sum))
    tl.store(out + 3 * programs, tl.sum(k3_sum))
    tl.store(out + ESS * programs, tl.sum(w_sum))
    tl.store(out + MAX * programs, tl.max(largest))
    tl.store(out + 6 * programs, outside_sum)
    tl.store(out + 7 * programs, kl_sum)
    tl.store(out + 8 * programs, h_sum)
    tl.store(out + WEIGHTS2 * programs, tl.sum(w2_sum))
    tl.store(out + COUNT * programs, tl.sum(count))
    tl.store(out + LOSS * programs, tl.sum(loss))
    _finish(parts_ptr, counter_ptr, loss_ptr, metrics_ptr, pid, programs, SLOTS)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    scores: Tensor,
    cu_seqlens: Tensor,
    normalizer: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    entropy: Tensor | None,
    mask: Tensor | None,
    group_ids: Tensor | None,
    reward_mask: Tensor | None,
    loss_type: str,
    divisor: float,
    clip_low: float,
    clip_high: float,
    clip_dual: float,
    kl_beta: float,
    sampler_correction: str,
    sequence_weight: str,
    correction_low: float,
    correction_cap: float,
    advantage_scale: str,
    advantage_eps: float,
    group_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dloss/dlogprobs [N] and metrics, all float32."""
    rows, device = len(cu_seqlens) - 1, logprobs.device
    if advantage_scale != "given" and not _fits(rows, group_ids, group_size):
        scores = group_kernel.group_advantages(
            scores, group_ids, reward_mask, group_size, advantage_scale, advantage_eps
        )
        advantage_scale, group_ids, reward_mask = "given", None, None
    limit = MAX_PROGRAMS_BATCH if advantage_scale == "batch" else MAX_PROGRAMS
    programs = max(1, min(rows, limit))
    dlogprobs = torch.empty(len(logprobs), dtype=torch.float32, device=device)
    parts = torch.empty(
        SLOTS * (programs + triton.cdiv(programs, FAN.value)), dtype=torch.float32, device=device
    )
    loss = torch.empty((), dtype=torch.float32, device=device)
    metrics = torch.empty(len(METRICS), dtype=torch.float32, device=device)
    by_id = advantage_scale != "given" and group_ids is not None
    block, warps = tile(len(logprobs), rows, wide=by_id or advantage_scale == "batch")
    grpo_loss_kernel[(programs,)](
        *(_flat(x) for x in (logprobs, old_logprobs, scores, cu_seqlens, normalizer)),
        *(_flat(x) for x in (ref_logprobs, sampler_logprobs, entropy, mask)),
        *(_flat(x) for x in (group_ids, reward_mask)),
        dlogprobs,
        parts,
        ticket.counters(device),
        loss,
        metrics,
        rows,
        group_size,
        1.0 / divisor,
        1.0 - clip_low,
        1.0 + clip_high,
        clip_dual,
        kl_beta,
        correction_low,
        correction_cap,
        advantage_eps,
        **choices(loss_type, sampler_correction, sequence_weight, advantage_scale),
        GROUP_BLOCK=triton.next_power_of_2(rows if by_id else max(group_size, 1)),
        BLOCK=block,
        num_warps=warps,
    )
    return loss, dlogprobs, metrics


def tile(tokens: int, rows: int, *, wide: bool) -> tuple[int, int]:
    """Tokens of a tile and its warps: most rows are to fit one tile, at 4 tokens a thread.

    wide  4 warps at least: the program also goes over all rewards, in tiles of 1,024

    Triton before 3.7 spills at 4 tokens a thread, and on sm_90 a few bytes at 2: there short tiles
    take 1.
    """
    mean = triton.next_power_of_2(max(1, tokens // max(rows, 1)))
    block = min(2048, max(128, mean))
    if OLD_TRITON:
        return block, min(16, block // 32)
    return block, max(block // 128, 4 if wide else 1)


def _fits(rows: int, group_ids: Tensor | None, group_size: int) -> bool:
    """Whether a program can hold what it needs of the rewards to compute its rows' advantages."""
    return rows <= MAX_ROWS_BY_ID if group_ids is not None else group_size <= MAX_GROUP


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def choices(
    loss_type: str, sampler_correction: str, sequence_weight: str, advantage_scale: str
) -> dict[str, Any]:
    """What a kernel is compiled for."""
    level = "token" if sampler_correction.startswith("token") else sequence_weight
    return {
        "SURROGATE": SURROGATES[loss_type],
        "ROW_MEAN": loss_type in ROW_MEAN,
        "CORRECTION": CORRECTIONS["none" if sampler_correction == "none" else level],
        "MASK_OUTSIDE": sampler_correction.endswith("mask"),
        "SCALE": SCALES[advantage_scale],
        "SLOTS": SLOTS,
    }
