"""Which backends a test of an op runs on, and on which device; see tests/ops/conftest.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visa_kernels  # noqa: F401  (registers the ops)
from visa_kernels import backend as backends

HAS_GPU = torch.cuda.is_available()


def each_backend(op: str) -> pytest.MarkDecorator:
    """Parametrize a test with `backend, device`: every implementation of `op`, best first.

    One that cannot run here is skipped with the reason; those on a GPU carry the mark gpu.
    """
    return pytest.mark.parametrize("backend,device", cases(op))


def cases(op: str) -> list[Any]:
    """pytest.param(backend, device) for every backend of an op and every device it has."""
    return [
        _param(found, device)
        for found in backends.registered()[op]
        for device in _devices(found)
    ]


def _devices(found: backends.Backend) -> list[str]:
    return [*found.interpreter_devices, *(found.devices or ("cpu", "cuda"))]


def _param(found: backends.Backend, device: str) -> Any:
    marks = [pytest.mark.gpu] if device == "cuda" else []
    if device in found.interpreter_devices and HAS_GPU:
        reason = "triton's interpreter runs where there is no GPU"
        marks.append(pytest.mark.skip(reason=reason))
    elif device == "cpu" or HAS_GPU:
        reason = found.why_not()
        if reason is not None:
            marks.append(pytest.mark.skip(reason=f"{found.name}: {reason}"))
    return pytest.param(found.name, device, marks=marks, id=f"{found.name}-{device}")


def skip_bf16_dot(backend: str, device: str, dtype: torch.dtype) -> None:
    """Skip a bf16 test of a Triton kernel with `tl.dot` in the interpreter, which has it wrong."""
    if backend == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("triton's interpreter computes tl.dot of bf16 operands wrongly")
