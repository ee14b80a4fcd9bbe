"""The CUDA source of token_logprobs, compiled for the host and run without a GPU.

Launches become calls, the one instruction in assembly becomes exp2f, and CUDA's headers are those
of tests/ops/cuda_host. So indices, the split of rows, alignment, and the order of arguments from
Python on are tested everywhere; speed, races and the GPU's own arithmetic are not.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.test_token_logprobs import by_hand, error, gradient_by_hand
from visa_kernels import cuda_library
from visa_kernels.token_logprobs import cuda_kernel, torch_op

pytestmark = pytest.mark.slow
LAUNCH = re.compile(r"(\w+(?:<\w+>)?)<<<(.+?), (\w+), 0, stream>>>\((.*?)\);", re.DOTALL)


def for_the_host(source: str) -> str:
    """A CUDA source as C++ for the stand-in headers."""
    source = LAUNCH.sub(r"host::launch(\2, \3, [&] { \1(\4); });", source)
    return re.sub(r'asm\("ex2[^;]*; *"?[^;]*;', "y = exp2f(x);", source)


@pytest.fixture(scope="module")
def library(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("cuda_host")
    (folder / "cuda").mkdir()
    for name in ("common.cuh", "softmax_rows.cuh", "token_logprobs.cu"):
        text = for_the_host((repo / "csrc" / "cuda" / name).read_text("utf-8"))
        assert "<<<" not in text and "asm(" not in text
        (folder / "cuda" / name).write_text(text, encoding="utf-8")
    out = folder / "host.so"
    include = [f"-I{folder}", f"-I{repo / 'tests' / 'ops' / 'cuda_host'}"]
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", *include, "-x", "c++"]
    command = [compiler, *flags, str(folder / "cuda" / "token_logprobs.cu"), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(out))


@pytest.fixture
def on_host(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda_kernel calls the host's build; rows are split as on a GPU of 4 processors."""

    def launch(name: str, kinds: tuple[Any, ...], device: torch.device, *args: Any) -> None:
        function: Callable[..., int] = library[name]
        function.argtypes = [*kinds, ctypes.c_void_p]
        assert function(*args, None) == 0

    monkeypatch.setattr(cuda_library, "launch", launch)
    monkeypatch.setattr(cuda_kernel, "processors", lambda device: 4)


def case(vocabulary: int, dtype: torch.dtype, shift: int) -> tuple[Tensor, Tensor]:
    """Logits [5, V] whose rows start `shift` elements past an aligned address, and ids."""
    wide = torch.randn(5 * (vocabulary + shift) + shift) * 4
    logits = wide[shift:].view(5, -1)[:, :vocabulary]
    logits[1] = -1e4
    logits[1, vocabulary // 2] = 1e4
    logits[2, : vocabulary // 2] = -torch.inf
    held = wide.to(dtype)[shift:].view(5, -1)[:, :vocabulary]
    ids = torch.randint(vocabulary // 2, vocabulary, (5,))
    return held, ids


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 33, 20011])
def test_values_and_gradients(vocabulary: int, dtype: torch.dtype, shift: int) -> None:
    logits, ids = case(vocabulary, dtype, shift)
    split = cuda_kernel.parts_of(5, vocabulary, 4) > 1
    assert split == (vocabulary > 2 * cuda_kernel.PART)
    x = logits.requires_grad_()
    got = torch_op.run(x, ids, 0.7, True, False, backend="cuda")
    g, g_entropy = torch.randn(5), torch.randn(5)
    g[3] = g_entropy[3] = 0.0
    (dx,) = torch.autograd.grad(got, x, (g, g_entropy))
    plain = logits.detach().float().numpy()
    for have, want in zip(got, by_hand(plain, ids.numpy(), 0.7), strict=True):
        np.testing.assert_allclose(have.detach(), want, rtol=2e-7, atol=1e-5)
    weights = (t.double().numpy() for t in (g, g_entropy))
    exact = gradient_by_hand(plain, ids.numpy(), 0.7, *weights)
    assert error(dx, exact) < 2 * torch.finfo(dtype).eps + 1e-5
    assert (dx[3] == 0).all()


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("vocabulary", [33, 20011])
def test_in_place_without_entropy(vocabulary: int) -> None:
    logits, ids = case(vocabulary, torch.bfloat16, 1)
    results = []
    for in_place in (False, True):
        x = (logits.detach() * 1).requires_grad_()
        logprobs, _ = torch_op.run(x, ids, 1.0, False, in_place, backend="cuda")
        (dx,) = torch.autograd.grad(logprobs.sum(), x)
        assert (dx.data_ptr() == x.data_ptr()) == in_place
        results.append(dx.clone())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.usefixtures("on_host")
def test_what_has_no_answer_is_nan() -> None:
    logits = torch.randn(5, 20000)
    logits[0, 19999] = float("nan")
    logits[1, 3] = torch.inf
    logits[2] = -torch.inf
    x, ids = logits.requires_grad_(), torch.tensor([0, 0, 0, 0, 20000])
    logprobs, entropy = torch_op.run(x, ids, 1.0, True, False, backend="cuda")
    assert logprobs.isnan().tolist() == [True, True, True, False, True]
    assert entropy.isnan().tolist() == [True, True, True, False, False]
    (dx,) = torch.autograd.grad(entropy.sum(), x)
    assert dx.isnan().all(1).tolist() == [True, True, True, False, False]
