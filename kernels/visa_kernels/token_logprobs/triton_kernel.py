"""token_logprobs in Triton: one program a row forward, one a tile of a row backward.

Legend: T rows, V vocabulary, b = 1 / temperature. Offsets are int64: T * V may pass 2^31.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from visa_kernels.devices import on
from visa_kernels.token_logprobs.triton_rows import row_stats, tile_gradient

FORWARD_BLOCK, FORWARD_WARPS = 4096, 8
BACKWARD_BLOCK, BACKWARD_WARPS = 4096, 8


@triton.jit
def forward_kernel(
    logits_ptr, ids_ptr, logprobs_ptr, entropy_ptr, shift_ptr, log_sum_ptr,
    V, stride, b,
    ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * stride
    shift, log_sum, entropy = row_stats(x_ptr, V, b, ENTROPY, BLOCK)
    token = tl.load(ids_ptr + row)
    known = (token >= 0) & (token < V)
    chosen = tl.load(x_ptr + token, mask=known, other=float("nan")).to(tl.float32)
    tl.store(logprobs_ptr + row, (chosen - shift) * b - log_sum)
    tl.store(shift_ptr + row, shift)
    tl.store(log_sum_ptr + row, log_sum)
    if ENTROPY:
        tl.store(entropy_ptr + row, entropy)


@triton.jit
def backward_kernel(
    logits_ptr, dlogits_ptr, ids_ptr, shift_ptr, log_sum_ptr, entropy_ptr,
    grad_logprobs_ptr, grad_entropy_ptr,
    V, stride, dstride, b,
    LOGPROBS: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < V
    g_logp, g_entropy, entropy = 0.0, 0.0, 0.0
    if LOGPROBS:
        g_logp = tl.load(grad_logprobs_ptr + row)
    if ENTROPY:
        g_entropy = tl.load(grad_entropy_ptr + row)
        entropy = tl.load(entropy_ptr + row)
    out_ptr = dlogits_ptr + row * dstride + at
    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    if (g_logp == 0.0) & (g_entropy == 0.0):
        tl.store(out_ptr, zero.to(dlogits_ptr.dtype.element_ty), mask=inside)
    else:
        x_ptr = logits_ptr + row * stride + at
        x = tl.load(x_ptr, mask=inside, other=-float("inf")).to(tl.float32)
        hit = at == tl.load(ids_ptr + row)
        shift, log_sum = tl.load(shift_ptr + row), tl.load(log_sum_ptr + row)
        dx = tile_gradient(x, hit, shift, log_sum, entropy, g_logp, g_entropy, b, ENTROPY)
        tl.store(out_ptr, dx.to(dlogits_ptr.dtype.element_ty), mask=inside)


def forward(
    logits_TV: Tensor,
    ids_T: Tensor,
    temperature: float,
    logprobs_T: Tensor,
    entropy_T: Tensor,
    stats_2T: Tensor,
) -> None:
    """Fill log-probabilities, entropies (skipped when that is empty), shifts and log-sums."""
    rows, vocabulary = logits_TV.shape
    with_entropy = len(entropy_T) > 0
    with on(logits_TV):
        forward_kernel[(rows,)](
            logits_TV, ids_T, logprobs_T, entropy_T if with_entropy else logprobs_T,
            stats_2T[0], stats_2T[1], vocabulary, logits_TV.stride(0), 1.0 / temperature,
            ENTROPY=with_entropy, BLOCK=FORWARD_BLOCK, num_warps=FORWARD_WARPS,
        )  # fmt: skip


def backward(
    logits_TV: Tensor,
    dlogits_TV: Tensor,
    ids_T: Tensor,
    temperature: float,
    entropy_T: Tensor,
    stats_2T: Tensor,
    grads: tuple[Tensor | None, Tensor | None],
) -> None:
    """Write the gradient of the logits to dlogits, which may be the logits themselves."""
    rows, vocabulary = logits_TV.shape
    grad_logprobs, grad_entropy = grads
    shift_T, log_sum_T = stats_2T[0], stats_2T[1]
    with on(logits_TV):
        backward_kernel[(rows, triton.cdiv(vocabulary, BACKWARD_BLOCK))](
            logits_TV, dlogits_TV, ids_T, shift_T, log_sum_T,
            shift_T if grad_entropy is None else entropy_T,
            shift_T if grad_logprobs is None else grad_logprobs,
            shift_T if grad_entropy is None else grad_entropy,
            vocabulary, logits_TV.stride(0), dlogits_TV.stride(0), 1.0 / temperature,
            LOGPROBS=grad_logprobs is not None, ENTROPY=grad_entropy is not None,
            BLOCK=BACKWARD_BLOCK, num_warps=BACKWARD_WARPS,
        )  # fmt: skip


def compile_cases() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """Real configurations, for the compile gate."""
    for dtype in ("fp32", "bf16", "fp16"):
        signature = dict.fromkeys(forward_kernel.arg_names, "*fp32")
        signature |= {"logits_ptr": f"*{dtype}", "ids_ptr": "*i64", "V": "i32", "stride": "i64"}
        signature["b"] = "fp32"
        settings = {"ENTROPY": True, "BLOCK": FORWARD_BLOCK}
        yield f"forward {dtype}", forward_kernel, signature, settings, FORWARD_WARPS, 3
        signature = dict.fromkeys(backward_kernel.arg_names, "*fp32")
        signature |= {"logits_ptr": f"*{dtype}", "dlogits_ptr": f"*{dtype}", "ids_ptr": "*i64"}
        signature |= {"V": "i32", "stride": "i64", "dstride": "i64", "b": "fp32"}
        settings = {"LOGPROBS": True, "ENTROPY": True, "BLOCK": BACKWARD_BLOCK}
        yield f"backward {dtype}", backward_kernel, signature, settings, BACKWARD_WARPS, 3
