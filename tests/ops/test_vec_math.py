"""The C++ arithmetic against float64: exp, log, bf16 and fp16, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from visa_kernels import backend as backends

MISSING = backends.why_no_extension()
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.usefixtures("isa"),
]

if MISSING is None:
    from visa_kernels import _C


def errors_in_ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|got - exact| in units of the last place of the exact value rounded to float32."""
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / spacing


def floats(low: float, high: float, count: int = 200_001) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, count).astype(np.float32)


def test_exp() -> None:
    x = np.concatenate([floats(-103.9, 88.7), floats(-1, 1), floats(-1e-4, 1e-4)])
    exact = np.exp(x.astype(np.float64))
    assert errors_in_ulps(_C.vec_math("exp", x), exact).max() < 1.5


def test_exp_at_the_ends() -> None:
    x = np.array([0, -np.inf, np.inf, np.nan, 1e4, -1e4, 88.8, -150], dtype=np.float32)
    expected = [1, 0, np.inf, np.nan, np.inf, 0, np.inf, 0]
    np.testing.assert_array_equal(_C.vec_math("exp", x), np.float32(expected))
    expected = [1, 0, 0, np.nan]
    x = np.array([0, -np.inf, -1e4, np.nan], dtype=np.float32)
    np.testing.assert_array_equal(_C.vec_math("exp_softmax", x), np.float32(expected))


def test_exp_for_softmax() -> None:
    x = np.concatenate([floats(-87.3, 80), floats(-1, 0)])
    exact = np.exp(x.astype(np.float64))
    assert errors_in_ulps(_C.vec_math("exp_softmax", x), exact).max() < 1.5
    dropped = _C.vec_math("exp_softmax", floats(-120, -87.3))
    assert (dropped >= 0).all() and dropped.max() < 1.3e-38


def test_log() -> None:
    wide = np.exp(floats(-87, 88).astype(np.float64)).astype(np.float32)
    x = np.concatenate([wide, floats(0.5, 2), 1 + floats(-1e-3, 1e-3), floats(1e-45, 1e-38)])
    x = x[x > 0]
    assert errors_in_ulps(_C.vec_math("log", x), np.log(x.astype(np.float64))).max() < 1.5


def test_log_at_the_ends() -> None:
    x = np.array([1, 0, -1, np.inf, -np.inf, np.nan, -0.0], dtype=np.float32)
    expected = np.float32([0, -np.inf, np.nan, np.inf, np.nan, np.nan, -np.inf])
    np.testing.assert_array_equal(_C.vec_math("log", x), expected)


@pytest.mark.parametrize("name,dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_sixteen_bits_round_as_torch_does(name: str, dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    near = torch.cat([every, every * (1 + 2**-11), every * (1 + 2**-8), every * (1 + 2**-23)])
    scattered = torch.randint(-(2**31), 2**31, (200_000,)).to(torch.int32).view(torch.float32)
    x = torch.cat([near, scattered])
    got = torch.from_numpy(_C.vec_math(name, x.numpy()))
    torch.testing.assert_close(got, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_an_unknown_instruction_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="avx1024 is none of baseline, avx2, avx512"):
        _C.use_isa("avx1024")


def test_the_environment_chooses() -> None:
    """Read once in a process, so each case has its own; loaded without the package around it."""
    code = (
        "import importlib.util as u, sys, torch\n"
        "spec = u.spec_from_file_location('visa_kernels._C', sys.argv[1])\n"
        "module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.isa())"
    )
    for value, expected in {"baseline": "baseline\n", "sse9": "VISA_ISA=sse9 is none of"}.items():
        done = subprocess.run(
            [sys.executable, "-c", code, _C.__file__],
            env=os.environ | {"VISA_ISA": value},
            capture_output=True,
            text=True,
        )
        assert expected in (done.stdout if value == "baseline" else done.stderr)
