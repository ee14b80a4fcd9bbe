"""Row kernels of a loss head in Triton: one program takes rows in turn; no autograd."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visa_kernels.devices import on
from visa_kernels.linear_logprobs.head import Head, Stats
from visa_kernels.linear_logprobs.triton_rows import (
    row_gradient,
    row_of_zeros,
    row_statistics,
)


@triton.jit(do_not_specialize=["rows"])
def _statistics_kernel(
    x_ptr, bias_ptr, ids_ptr, logprobs_ptr, entropy_ptr, shift_ptr, log_sum_ptr,
    rows, V, W, stride, b, cap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        row_ptr = x_ptr + row * tl.cast(stride, tl.int64)
        token = tl.load(ids_ptr + row)
        logp, entropy, shift, log_sum = row_statistics(
            row_ptr, bias_ptr, token, V, W, b, cap, HAS_BIAS, HAS_CAP, BLOCK, STAGES
        )
        tl.store(logprobs_ptr + row, logp)
        tl.store(entropy_ptr + row, entropy)
        tl.store(shift_ptr + row, shift)
        tl.store(log_sum_ptr + row, log_sum)


@triton.jit(do_not_specialize=["rows"])
def _gradient_kernel(
    x_ptr, bias_ptr, ids_ptr, logprobs_ptr, entropy_ptr, shift_ptr, log_sum_ptr, g_ptr,
    g_entropy_ptr, rows, V, W, stride, b, cap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        row_ptr = x_ptr + row * tl.cast(stride, tl.int64)
        g = tl.load(g_ptr + row)
        g_entropy = 0.0
        if HAS_ENTROPY:
            g_entropy = tl.load(g_entropy_ptr + row)
        if (g == 0.0) & (g_entropy == 0.0):
            row_of_zeros(row_ptr, W, BLOCK)
        else:
            row_gradient(
                row_ptr, bias_ptr, tl.load(ids_ptr + row), V, W, b, cap,
                tl.load(logprobs_ptr + row), tl.load(shift_ptr + row),
                tl.load(log_sum_ptr + row), tl.load(entropy_ptr + row), g, g_entropy,
                HAS_BIAS, HAS_CAP, HAS_ENTROPY, BLOCK, STAGES,
            )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many programs run, and how wide each of them is."""

    programs: int
    block: int
    warps: int
    stages: int = 3

    def block_of(self, changed: bool) -> int:
        """Half as wide where bias and softcap take registers too."""
        return max(self.block // 2, 16) if changed else self.block

    def options(self, head: Head) -> dict[str, Any]:
        """Constants and options that every kernel takes."""
        return {
            "HAS_BIAS": head.bias is not None,
            "HAS_CAP": head.softcap != 0,
            "BLOCK": self.block_of(head.bias is not None or head.softcap != 0),
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


WIDE = Launch(programs=1, block=8192, warps=16)
"""One program on a multiprocessor: for rows so long that more of them would not stay in L2."""
NARROW = Launch(programs=4, block=2048, warps=8)
"""Up to four programs on a multiprocessor; `programs` is that number."""


def launch_for(product_nV: Tensor) -> Launch:
    """Programs such that the rows in flight fill at most 6/10 of L2: each is read twice."""
    rows, vocabulary = product_nV.shape
    processors, cache = _device(product_nV.device)
    fitting = cache * 6 // 10 // max(vocabulary * product_nV.element_size() * processors, 1)
    base = WIDE if fitting < 2 else NARROW
    each = max(1, min(fitting, base.programs))
    block = min(base.block // (product_nV.element_size() // 2), triton.next_power_of_2(vocabulary))
    return Launch(
        programs=max(1, min(rows, processors * each)), block=max(block, 16), warps=base.warps
    )


@functools.lru_cache
def _device(device: torch.device) -> tuple[int, int]:
    """Multiprocessors and bytes of L2; small numbers for the interpreter."""
    if device.type != "cuda":
        return 2, 2**22
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size


def statistics(product_nV: Tensor, ids_n: Tensor, head: Head, stats_n: Stats) -> None:
    """See `head.Rows.statistics`."""
    rows, vocabulary = product_nV.shape
    if not rows:
        return
    launch = launch_for(product_nV)
    with on(product_nV):
        _statistics_kernel[(launch.programs,)](
            product_nV,
            bias_or(product_nV, head),
            ids_n,
            stats_n.logprobs,
            stats_n.entropy,
            stats_n.shift,
            stats_n.log_sum,
            rows,
            vocabulary,
            addressable(product_nV),
            product_nV.stride(0),
            1.0 / head.temperature,
            head.softcap,
            **launch.options(head),
        )


def gradient(
    product_nV: Tensor,
    ids_n: Tensor,
    head: Head,
    stats_n: Stats,
    dlogprobs_n: Tensor,
    dentropy_n: Tensor | None,
) -> None:
    """See `head.Rows.gradient`."""
    rows, vocabulary = product_nV.shape
    if not rows:
        return
    launch = launch_for(product_nV)
    with on(product_nV):
        _gradient_kernel[(launch.programs,)](
            product_nV,
            bias_or(product_nV, head),
            ids_n,
            stats_n.logprobs,
            stats_n.entropy,
            stats_n.shift,
            stats_n.log_sum,
            dlogprobs_n,
            dlogprobs_n if dentropy_n is None else dentropy_n,
            rows,
            vocabulary,
            addressable(product_nV),
            product_nV.stride(0),
            1.0 / head.temperature,
            head.softcap,
            HAS_ENTROPY=dentropy_n is not None,
            **launch.options(head),
        )


def addressable(product_nV: Tensor) -> int:
    """Entries of a row that may be read and written: its padding too, where there is one."""
    return product_nV.stride(0) if product_nV.device.type == "cuda" else product_nV.shape[1]


def bias_or(product_nV: Tensor, head: Head) -> Tensor:
    """The bias, or any tensor where there is none: the kernel does not read it then."""
    return product_nV if head.bias is None else head.bias


def variants() -> Iterator[tuple[str, str, dict[str, Any], Launch]]:
    """Name, element type, constants and width of the builds that every kernel has in use."""
    for launch, width in ((WIDE, "wide"), (NARROW, "narrow")):
        for dtype, divisor in (("bf16", 1), ("fp16", 1), ("fp32", 2)):
            for bias, cap in ((False, False), (True, True))[: 1 if dtype == "fp16" else 2]:
                constants = {
                    "HAS_BIAS": bias,
                    "HAS_CAP": cap,
                    "BLOCK": launch.block_of(bias) // divisor,
                    "STAGES": launch.stages,
                }
                extra = "_bias_softcap" if bias else ""
                yield f"{width}_{dtype}{extra}", dtype, constants, launch


def compile_cases() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """Builds for the compile gate: name, kernel, signature, constants, warps, stages."""
    sizes = {"rows": "i32", "V": "i32", "W": "i32:16", "stride": "i64:16"}
    sizes |= {"b": "fp32", "cap": "fp32"}
    floats = ("logprobs", "entropy", "shift", "log_sum")
    for name, dtype, constants, launch in variants():
        pointers = {"x_ptr": f"*{dtype}:16", "bias_ptr": "*fp32:16", "ids_ptr": "*i64:16"}
        signature = pointers | {f"{field}_ptr": "*fp32" for field in floats} | sizes
        yield (
            f"linear_logprobs_statistics_{name}",
            _statistics_kernel,
            signature,
            constants,
            launch.warps,
            launch.stages,
        )
        fields = (*floats, "g", "g_entropy")
        signature = pointers | {f"{field}_ptr": "*fp32" for field in fields} | sizes
        yield (
            f"linear_logprobs_gradient_{name}",
            _gradient_kernel,
            signature,
            constants | {"HAS_ENTROPY": True},
            launch.warps,
            launch.stages,
        )
