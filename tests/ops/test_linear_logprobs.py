"""The loss head in chunks: values, gradients, error budget, odd shapes, memory, compile, export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import memory
from tests.ops.backends import each_backend
from visa_kernels import linear_logprobs
from visa_kernels.backend import BackendError
from visa_kernels.linear_logprobs import chunks, torch_op

on_each = each_backend("linear_logprobs")
CAPS = [None, 3.0]


def problem(tokens: int = 23, hidden: int = 16, vocabulary: int = 61, dtype=torch.float64) -> dict:
    """Inputs of which float32, bfloat16 and float16 copies are made from one float64 draw."""
    x = {
        "hidden": torch.randn(tokens, hidden, dtype=torch.float64),
        "weight": torch.randn(vocabulary, hidden, dtype=torch.float64) * 0.5,
        "bias": torch.randn(vocabulary, dtype=torch.float64),
    }
    x = {name: value.to(dtype).double() for name, value in x.items()}
    ids = torch.randint(0, vocabulary, (tokens,))
    ids[:2] = torch.tensor([0, vocabulary - 1])[: min(tokens, 2)]
    return x | {"ids": ids}


def dense(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, b: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """As one would write it in the inputs' own type, with all logits at once."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    every = (wide / b).log_softmax(-1)
    p = every.exp()
    entropy = -(p * every.masked_fill(every == -torch.inf, 0.0)).sum(-1)
    return every.gather(-1, ids[:, None]).squeeze(-1), entropy


def results(
    x: dict[str, Any], run, dtype: torch.dtype, device: str = "cpu", weights=(1.0, 0.5)
) -> list[Tensor]:
    """logprobs, entropy, and the gradients of a weighted sum of both, on the CPU in float64."""
    names = [name for name in ("hidden", "weight", "bias") if x.get(name) is not None]
    leaves = {name: x[name].to(device, dtype).requires_grad_() for name in names}
    logprobs, entropy = run(
        leaves["hidden"], leaves["weight"], leaves.get("bias"), x["ids"].to(device)
    )
    ramp = torch.linspace(-1, 1, len(logprobs), dtype=logprobs.dtype, device=device)
    total = weights[0] * (ramp * logprobs).sum() + weights[1] * (ramp.flip(0) * entropy).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return [r.detach().double().cpu() for r in (logprobs, entropy, *gradients)]


def op(backend: str, b: float = 1.0, cap: float | None = None, **more: Any):
    return lambda hidden, weight, bias, ids: linear_logprobs(
        hidden, weight, ids, bias, b, cap, with_entropy=True, backend=backend, **more
    )


def plain(b: float = 1.0, cap: float | None = None):
    return lambda hidden, weight, bias, ids: dense(hidden, weight, bias, ids, b, cap)


def within_budget(
    x: dict[str, Any], backend: str, device: str, dtype: torch.dtype, b: float, cap: float | None,
    factor: float, floor: float, **more: Any,
) -> None:
    """Error against float64 at most `factor` times that of torch code in the same type + floor."""
    exact = results(x, plain(b, cap), torch.float64)
    theirs = results(x, plain(b, cap), dtype, device)
    ours = results(x, op(backend, b, cap, **more), dtype, device)
    for got, same, want in zip(ours, theirs, exact, strict=True):
        budget = factor * (same - want).abs().max() + floor * (1 + want.abs().max())
        assert (got - want).abs().max() <= budget


@on_each
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(
    backend: str, device: str, cap: float | None, with_bias: bool
) -> None:
    x = problem(dtype=torch.float32)
    if with_bias:
        x["bias"][3] = x["bias"][60] = -torch.inf
        x["ids"][x["ids"] == 60] = 59
        x["ids"][x["ids"] == 3] = 4
    else:
        x["bias"] = None
    if cap is not None and with_bias:
        x["bias"] = x["bias"].nan_to_num(neginf=-4.0)
    within_budget(x, backend, device, torch.float32, 0.7, cap, 2.0, 3e-6)


@on_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", CAPS)
def test_error_budget(backend: str, device: str, dtype: torch.dtype, cap: float | None) -> None:
    x = problem(64, 32, 300, dtype)
    within_budget(x, backend, device, dtype, 1.0, cap, 1.5, torch.finfo(dtype).eps / 4)


@on_each
def test_values_by_hand(backend: str, device: str) -> None:
    """In numpy, one token at a time, with a row of several blocks."""
    x = problem(5, 8, 5003, torch.float32)
    logprobs, entropy = linear_logprobs(
        *(x[name].float().to(device) for name in ("hidden", "weight")),
        x["ids"].to(device),
        temperature=1.3,
        with_entropy=True,
        backend=backend,
    )
    for token in range(5):
        scaled = x["weight"].numpy() @ x["hidden"][token].numpy() / 1.3
        p = np.exp(scaled - scaled.max())
        p /= p.sum()
        want = np.log(p[x["ids"][token]]), -(p * np.log(p)).sum()
        got = logprobs[token].item(), entropy[token].item()
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-5)


@on_each
@pytest.mark.parametrize("chunk", [1, 5, 8, 23, 1000])
def test_any_chunk_gives_the_same(backend: str, device: str, chunk: int) -> None:
    x = problem(dtype=torch.float32)
    within_budget(x, backend, device, torch.float32, 1.0, None, 2.0, 3e-6, chunk_tokens=chunk)


@on_each
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_either_gradient_alone(
    backend: str, device: str, weights: tuple[float, float]
) -> None:
    x = problem(dtype=torch.float32)
    exact = results(x, plain(), torch.float64, weights=weights)
    ours = results(x, op(backend), torch.float32, device, weights)
    for got, want in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@on_each
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (3, 2, 1025)])
def test_odd_shapes(backend: str, device: str, shape: tuple[int, int, int]) -> None:
    x = problem(*shape, torch.float32)
    within_budget(x, backend, device, torch.float32, 1.0, None, 2.0, 3e-6)


@on_each
def test_no_tokens(backend: str, device: str) -> None:
    hidden = torch.zeros(0, 4, device=device, requires_grad=True)
    weight = torch.ones(7, 4, device=device, requires_grad=True)
    ids = torch.zeros(0, dtype=torch.int64, device=device)
    logprobs, entropy = linear_logprobs(hidden, weight, ids, with_entropy=True, backend=backend)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, 4)
    assert weight.grad.eq(0).all()


@on_each
def test_extreme_logits(backend: str, device: str) -> None:
    """Logits of 1e4, far from the first ones of the row, and tokens that cannot be drawn."""
    vocabulary = 3000
    weight = torch.zeros(vocabulary, 2, device=device)
    weight[-1, 0], weight[7, 1] = 1e4, -1e4
    bias = torch.zeros(vocabulary, device=device)
    bias[10:2990] = -torch.inf
    hidden = torch.eye(2, device=device).requires_grad_()
    ids = torch.tensor([0, 8], device=device)
    logprobs, entropy = linear_logprobs(
        hidden, weight, ids, bias, with_entropy=True, backend=backend
    )
    expected = torch.tensor([-1e4, -np.log(19)], dtype=torch.float32)
    torch.testing.assert_close(logprobs.detach().cpu(), expected)
    expected = torch.tensor([0.0, np.log(19)], dtype=torch.float32)
    torch.testing.assert_close(entropy.detach().cpu(), expected)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.isfinite(hidden.grad).all()
    ids = torch.tensor([20, 20], device=device)
    impossible = linear_logprobs(hidden.detach(), weight, ids, bias, backend=backend)
    assert impossible.eq(-torch.inf).all()


@on_each
def test_strides_and_narrow_ids(backend: str, device: str) -> None:
    x = problem(dtype=torch.float32)
    hidden = x["hidden"].float().to(device)
    weight = x["weight"].float().to(device)
    expected = linear_logprobs(hidden, weight, x["ids"].to(device), backend=backend)
    spread = torch.empty(23, 32, device=device)[:, ::2].copy_(hidden)
    turned = weight.t().contiguous().t()
    ids = torch.stack([x["ids"].to(device)] * 2, 1).int()[:, 0]
    got = linear_logprobs(spread, turned, ids, backend=backend)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@on_each
def test_frozen_inputs_get_no_gradient(backend: str, device: str) -> None:
    x = problem(dtype=torch.float32)
    hidden, weight, bias = (
        x[name].float().to(device) for name in ("hidden", "weight", "bias")
    )
    ids = x["ids"].to(device)
    hidden.requires_grad_()
    linear_logprobs(hidden, weight, ids, bias, backend=backend).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is bias.grad is None
    assert not linear_logprobs(hidden.detach(), weight, ids, backend=backend).requires_grad


@pytest.mark.slow
def test_gradcheck_of_the_reference() -> None:
    x = problem(4, 3, 5)
    leaves = [x[name].requires_grad_() for name in ("hidden", "weight", "bias")]

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprobs(hidden, weight, x["ids"], bias, 0.7, 3.0, with_entropy=True)

    assert torch.autograd.gradcheck(run, leaves)


def test_refusals() -> None:
    hidden, weight, ids = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)
    for wrong, message in [
        ({"hidden": torch.zeros(3, 5)}, "weight"),
        ({"ids": ids[:2]}, "one per token"),
        ({"ids": ids.float()}, "int64"),
        ({"ids": ids + 5}, r"in \[0, 5\)"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"temperature": 0.0}, "temperature"),
        ({"softcap": -1.0}, "softcap"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"weight": weight.bfloat16(), "backend": "chunked"}, "one type"),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_logprobs(**{"hidden": hidden, "weight": weight, "ids": ids} | wrong)
    with pytest.raises(BackendError, match="float64"):
        linear_logprobs(hidden.double(), weight.double(), ids, backend="chunked")
    assert linear_logprobs(hidden.double(), weight.double(), ids).dtype == torch.float64


def test_autocast_casts_both() -> None:
    hidden, weight = torch.randn(3, 8), torch.randn(50, 8, requires_grad=True)
    ids = torch.tensor([1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_logprobs(hidden, weight, ids)
    expected = linear_logprobs(hidden.bfloat16(), weight.bfloat16(), ids)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_no_logits_of_the_whole_batch(backend: str) -> None:
    """[T, V] would take 128 MiB, and dense torch takes several of them."""
    torch.use_deterministic_algorithms(False)
    hidden, weight = torch.randn(2048, 8), torch.randn(2**14, 8)
    ids = torch.zeros(2048, dtype=torch.int64)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]

    def run() -> Any:
        logprobs = linear_logprobs(hidden, weight, ids, chunk_tokens=32, backend=backend)
        return torch.autograd.grad(logprobs.sum(), leaves)

    run()
    used = memory.of_call(run, "cpu")
    if used is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert used.peak < 48 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_operators_keep_their_contracts(backend: str) -> None:
    hidden, weight, bias = torch.randn(5, 4), torch.randn(9, 4), torch.randn(9)
    for x in (hidden, weight, bias):
        x.requires_grad_()
    ids = torch.tensor([0, 8, 3, 3, 1])
    forward = torch.ops.visa_kernels.linear_logprobs.default
    torch.library.opcheck(forward, (hidden, weight, ids, bias, 0.7, 3.0, 2, backend))
    stats = [x.detach() for x in torch_op.linear_logprobs(
        hidden, weight, ids, bias, 0.7, 3.0, 2, backend
    )]
    plain = [x.detach() for x in (hidden, weight)]
    torch.library.opcheck(
        torch.ops.visa_kernels.linear_logprobs_backward.default,
        (torch.ones(5), None, *plain, ids, bias.detach(), stats, 0.7, 3.0, True, True, False, 2,
         backend),
    )


@pytest.mark.slow
def test_compile_and_export() -> None:
    torch.compiler.reset()
    ids = torch.tensor([0, 8, 3, 3, 1])

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(4, 9)

        def forward(self, hidden: Tensor) -> Tensor:
            logprobs, entropy = linear_logprobs(
                hidden, self.head.weight, ids, self.head.bias, 0.7, with_entropy=True
            )
            return (logprobs + 0.1 * entropy).sum()

    model, hidden = Model(), torch.randn(5, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(model(hidden), list(model.parameters()))
    got = torch.autograd.grad(compiled(hidden), list(model.parameters()))
    torch.testing.assert_close(got, expected)
    exported = torch.export.export(model, (hidden,))
    torch.testing.assert_close(exported.module()(hidden), model(hidden))


def test_chunks_fit_their_budget() -> None:
    for tokens, vocabulary in [(1, 7), (513, 32000), (8192, 131072), (2048, 32000), (100, 10**7)]:
        size = chunks.chunk_tokens(tokens, torch.empty(vocabulary, 0), 4)
        assert 1 <= size <= max(tokens, 16)
        fits = size * vocabulary * 4 <= chunks.BYTES["cpu"]
        assert fits or size == chunks.LEAST_TOKENS["cpu"]


def test_chunks_fill_a_gpu() -> None:
    """132 multiprocessors, D = 4096: 3072 rows are 384 tiles, 3 full rounds but for 12."""
    assert chunks.of_gpu(8192, 4096, 3072, 132) == 3072
    assert 6200 % chunks.of_gpu(6200, 4096, 3072, 132) > 500


@pytest.mark.gpu
def test_addresses_past_2_to_31() -> None:
    """A chunk of 17,000 x 131,072 logits, whose last rows lie past 2^31 elements."""
    hidden = torch.randn(17000, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(131072, 8, device="cuda", dtype=torch.bfloat16)
    ids = torch.randint(0, 131072, (17000,), device="cuda")
    whole = linear_logprobs(hidden, weight, ids, backend="triton", chunk_tokens=17000)
    last = linear_logprobs(hidden[-64:], weight, ids[-64:], backend="triton")
    torch.testing.assert_close(whole[-64:], last, rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(whole[-64:].sum(), hidden)
    (wanted,) = torch.autograd.grad(last.sum(), hidden)
    torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=1e-3)
