"""Products of large float32 matrices on a CPU by the C++ extension, into memory that exists.

torch multiplies float32 matrices with MKL, which on AMD processors with AVX-512 is the slower one.
oneDNN, the other library in torch, has no product there that writes into given memory.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from visa_kernels.backend import why_no_extension

LEAST_ROWS = 16
"""Fewer rows than this do not pay for copying the other matrix into panels."""


def is_faster(a_MK: Tensor) -> bool:
    """Whether a product of few rows a with a large matrix is to be taken here, not by torch."""
    return (
        a_MK.device.type == "cpu"
        and a_MK.dtype == torch.float32
        and len(a_MK) >= LEAST_ROWS
        and why_not() is None
    )


def why_not() -> str | None:
    """None where these products are faster than torch's on this processor, otherwise why not."""
    reason = why_no_extension() or why_mkl()
    if reason is None:
        from visa_kernels import _C

        if _C.isa() != "avx512":
            reason = f"the extension uses {_C.isa()}"
    return reason


@cache
def why_mkl() -> str | None:
    """None where torch's float32 products leave speed unused, otherwise why they are kept."""
    if not torch.backends.mkl.is_available():
        return "torch's own products are not MKL's"
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return "MKL uses this processor's widest units"
    return None


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def multiply(
    out_MN: Tensor, a_MK: Tensor, b_KN: Tensor, *, alpha: float = 1.0, beta: float = 0.0
) -> None:
    """out = beta * out + alpha * a @ b, on as many threads as torch uses.

    a and b may have any strides, out's columns or rows must be contiguous, and out must not share
    memory with a or b. With beta 0, out may hold anything. The bits of the result do not depend on
    the number of threads. ValueError for other types, devices, shapes or strides.
    """
    from visa_kernels import _C

    every = (out_MN, a_MK, b_KN)
    if any(x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 2 for x in every):
        raise ValueError("multiply takes float32 matrices on the CPU")
    (rows, columns), (_, depth) = out_MN.shape, a_MK.shape
    if a_MK.shape != (rows, depth) or b_KN.shape != (depth, columns):
        shapes = [tuple(x.shape) for x in every]
        raise ValueError(f"shapes of out, a and b do not fit: {shapes}")
    if out_MN.stride(1) != 1 and columns > 1:
        if out_MN.stride(0) != 1 and rows > 1:
            raise ValueError(f"out needs contiguous rows or columns, has {out_MN.stride()}")
        multiply(out_MN.t(), b_KN.t(), a_MK.t(), alpha=alpha, beta=beta)
        return
    _C.packed_gemm(
        rows,
        columns,
        depth,
        a_MK.data_ptr(),
        *a_MK.stride(),
        b_KN.data_ptr(),
        *b_KN.stride(),
        out_MN.data_ptr(),
        out_MN.stride(0),
        alpha,
        beta,
        torch.get_num_threads(),
    )
