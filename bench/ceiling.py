"""What the device can do at most, measured beside the ops: copy bandwidth and matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.registry import Case
from visa_kernels.packed_gemm import why_mkl

COPY, GEMM = "ceiling:copy", "ceiling:gemm"
"""Names of the ceilings among the contenders of a round."""

GEMM_SHAPES = {"cpu": (2048, 2048, 2048), "cuda": (8192, 4096, 16384)}
"""M, K, N of the matrix product. On a CPU about 0.2 s on one core."""

COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Size of the tensor that is copied: well past the caches."""


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """A run that is bound by one limit, and its work in bytes or FLOPs."""

    run: Callable[[], Any]
    work: float


def of_case(case: Case, device: str) -> dict[str, Ceiling]:
    """The ceilings that a case is held against: copy, and GEMM in its dtype if it has FLOPs."""
    found = {}
    if case.bytes_moved:
        found[COPY] = copy(device)
    if case.flops:
        found[GEMM] = gemm(device, getattr(torch, case.dtype))
    return found


def copy(device: str) -> Ceiling:
    """Copy of one tensor to another; its bytes are counted read and written."""
    source = torch.ones(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    return Ceiling(run=lambda: target.copy_(source), work=2 * source.nbytes)


def gemm(device: str, dtype: torch.dtype) -> Ceiling:
    """Matrix product of random numbers in a dtype. Zeros would draw less power and run faster.

    By oneDNN instead of torch.mm where that is the faster one of the two libraries in torch; never
    by a product of ours, which is what the ceiling judges.
    """
    m, k, n = GEMM_SHAPES[device]
    left = torch.randn(m, k, device=device).to(dtype)
    right = torch.randn(n, k, device=device).to(dtype).t()
    if _onednn_is_faster(left):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(right.t())
        product = torch.ops.mkldnn._linear_pointwise
        return Ceiling(
            run=lambda: product(left, laid_out, None, "none", [], ""), work=2 * m * k * n
        )
    out = torch.empty(m, n, device=device, dtype=dtype)
    return Ceiling(run=lambda: torch.mm(left, right, out=out), work=2 * m * k * n)


def _onednn_is_faster(x: torch.Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise") and why_mkl() is None


def floor_seconds(case: Case, rates: dict[str, float]) -> float:
    """Least time of a case at measured rates, bytes/s and FLOP/s: the larger of its two floors."""
    floors = [0.0]
    if COPY in rates:
        floors.append(case.bytes_moved / rates[COPY])
    if GEMM in rates:
        floors.append(case.flops / rates[GEMM])
    return max(floors)
