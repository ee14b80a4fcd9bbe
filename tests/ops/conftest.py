"""What the tests of ops share: how each backend is reached, and poisoned memory.

The convention for Triton, which decides between interpreter and compiler when a kernel is defined:

- tests/conftest.py sets TRITON_INTERPRET=1 where torch sees no CUDA device, before anything can
  import triton. A test process is therefore either all interpreter (CPU tensors) or all compiler
  (CUDA tensors); no test sets or clears the variable itself.
- Tests take `backend` and `device` from `tests.ops.backends.each_backend(OP)`. It lists every
  registered backend on the devices it has: `triton` on "cpu" (interpreter) and on "cuda" (marked
  gpu), `cuda` on "cuda" (marked gpu). Triton's interpreter gets bf16 `tl.dot` wrong: call
  `skip_bf16_dot(backend, device, dtype)` in tests of kernels that multiply matrices.
- Ahead-of-time builds need the compiler: tests/ops/test_compile_gate.py runs
  `python -m bench.compile_gate` in a process of its own, without the variable.

Tests of C++ code that is compiled per instruction set use the fixture `isa`, which runs them once
for each that this machine has; others run on the widest.

`torch.empty` gives NaN (integers: the largest value) in all these tests, so that memory which a
kernel was to fill and did not shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from visa_kernels import backend as backends


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN; `warn_only` keeps operations without a deterministic form usable."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _isas() -> list[str]:
    if backends.why_no_extension() is not None:
        return ["none"]
    from visa_kernels import _C

    return list(_C.supported_isas())


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set in turn; "none", once, where the extension is missing."""
    if request.param == "none":
        yield "none"
        return
    from visa_kernels import _C

    before = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(before)
