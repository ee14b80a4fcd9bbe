"""Row kernel of a head with its policy loss in Triton; the head's own come from linear_logprobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visa_kernels.devices import on
from visa_kernels.grpo_loss.triton_terms import k3, token_term
from visa_kernels.linear_grpo_loss.plan import Bounds, Terms
from visa_kernels.linear_logprobs.head import Head, Stats
from visa_kernels.linear_logprobs.triton_kernel import (
    addressable,
    bias_or,
    gradient,
    launch_for,
    statistics,
    variants,
)
from visa_kernels.linear_logprobs.triton_rows import row_gradient, row_of_zeros, row_statistics

__all__ = ["compile_cases", "gradient", "policy", "statistics"]

CLIP_TOKENS, CLIP_WEIGHTS = 0, 2
"""Values of SURROGATE, as grpo_loss/triton_terms.py has them."""

SCALE_BLOCK = 2048


@triton.jit(do_not_specialize=["rows"])
def _policy_kernel(
    x_ptr, bias_ptr, ids_ptr, old_ptr, advantages_ptr, policy_scale_ptr, ref_ptr, kl_scale_ptr,
    logprobs_ptr, entropy_ptr, shift_ptr, log_sum_ptr, dlogprobs_ptr,
    rows, V, W, stride, b, cap, clip_low, clip_high, clip_dual,
    SURROGATE: tl.constexpr, HAS_KL: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    """Statistics of a row, the slope of its loss, and the row's gradient while L2 still has it."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        row_ptr = x_ptr + row * tl.cast(stride, tl.int64)
        token = tl.load(ids_ptr + row)
        logp, entropy, shift, log_sum = row_statistics(
            row_ptr, bias_ptr, token, V, W, b, cap, HAS_BIAS, HAS_CAP, BLOCK, STAGES
        )
        term, slope, low, high = token_term(
            logp, tl.load(old_ptr + row), tl.load(advantages_ptr + row),
            clip_low, clip_high, clip_dual, SURROGATE,
        )
        g = slope * tl.load(policy_scale_ptr + row)
        if HAS_KL:
            kl, kl_slope = k3(logp, tl.load(ref_ptr + row))
            kl_scale = tl.load(kl_scale_ptr + row)
            g += tl.where(kl_scale == 0.0, 0.0, kl_slope * kl_scale)
        tl.store(logprobs_ptr + row, logp)
        tl.store(entropy_ptr + row, entropy)
        tl.store(shift_ptr + row, shift)
        tl.store(log_sum_ptr + row, log_sum)
        tl.store(dlogprobs_ptr + row, g)
        # Every warp must have read the row's chosen token before any of them overwrites it.
        tl.debug_barrier()
        if g == 0.0:
            row_of_zeros(row_ptr, W, BLOCK)
        else:
            row_gradient(
                row_ptr, bias_ptr, token, V, W, b, cap, logp, shift, log_sum, entropy, g, 0.0,
                HAS_BIAS, HAS_CAP, False, BLOCK, STAGES,
            )


@triton.jit
def _scale_kernel(x_ptr, factor_ptr, out_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < size).to(tl.float32)
    scaled_x = x * tl.load(factor_ptr)
    tl.store(out_ptr + at, scaled_x.to(out_ptr.dtype.element_ty), mask=at < size)


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, a float32 scalar on the device, rounded once; x is contiguous."""
    out = torch.empty_like(x)
    programs = triton.cdiv(x.numel(), SCALE_BLOCK)
    if programs:
        with on(x):
            _scale_kernel[(programs,)](x, factor, out, x.numel(), BLOCK=SCALE_BLOCK, num_warps=4)
    return out


def policy(
    product_nV: Tensor,
    ids_n: Tensor,
    head: Head,
    stats_n: Stats,
    terms_n: Terms,
    bounds: Bounds,
    dlogprobs_n: Tensor,
) -> None:
    """See `passes.PolicyRows.policy`."""
    rows, vocabulary = product_nV.shape
    if not rows:
        return
    launch = launch_for(product_nV)
    unused = terms_n.old_logprobs
    with on(product_nV):
        _policy_kernel[(launch.programs,)](
            product_nV,
            bias_or(product_nV, head),
            ids_n,
            terms_n.old_logprobs,
            terms_n.advantages,
            terms_n.policy_scale,
            unused if terms_n.ref_logprobs is None else terms_n.ref_logprobs,
            unused if terms_n.kl_scale is None else terms_n.kl_scale,
            stats_n.logprobs,
            stats_n.entropy,
            stats_n.shift,
            stats_n.log_sum,
            dlogprobs_n,
            rows,
            vocabulary,
            addressable(product_nV),
            product_nV.stride(0),
            1.0 / head.temperature,
            head.softcap,
            bounds.low,
            bounds.high,
            bounds.dual,
            SURROGATE=CLIP_WEIGHTS if bounds.cispo else CLIP_TOKENS,
            HAS_KL=terms_n.kl_scale is not None,
            **launch.options(head),
        )


def compile_cases() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """Builds for the compile gate: name, kernel, signature, constants, warps, stages."""
    vectors = ("old", "advantages", "policy_scale", "ref", "kl_scale", "logprobs", "entropy")
    vectors += ("shift", "log_sum", "dlogprobs")
    numbers = ("b", "cap", "clip_low", "clip_high", "clip_dual")
    for name, dtype, constants, launch in variants():
        signature = {"x_ptr": f"*{dtype}:16", "bias_ptr": "*fp32:16", "ids_ptr": "*i64:16"}
        signature |= {f"{vector}_ptr": "*fp32" for vector in vectors}
        signature |= {"rows": "i32", "V": "i32", "W": "i32:16", "stride": "i64:16"}
        signature |= {number: "fp32" for number in numbers}
        surrogates = {"clip": CLIP_TOKENS, "cispo": CLIP_WEIGHTS}
        for loss, surrogate in surrogates.items():
            yield (
                f"linear_grpo_loss_{loss}_{name}",
                _policy_kernel,
                signature,
                constants | {"SURROGATE": surrogate, "HAS_KL": loss == "clip"},
                launch.warps,
                launch.stages,
            )
    signature = {"x_ptr": "*bf16", "factor_ptr": "*fp32", "out_ptr": "*bf16", "size": "i64:16"}
    yield "linear_grpo_loss_scale", _scale_kernel, signature, {"BLOCK": SCALE_BLOCK}, 4, 3
