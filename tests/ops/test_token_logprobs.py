"""Log-probabilities and entropies on every backend against float64 numpy; gradients, extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.backends import each_backend
from visa_kernels import backend as backends
from visa_kernels import token_logprobs

INF = torch.inf
on_every_backend = each_backend("token_logprobs")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
CPU_MISSING = backends.why_no_extension()
needs_cpu = pytest.mark.skipif(CPU_MISSING is not None, reason=str(CPU_MISSING))


def by_hand(logits: np.ndarray, ids: np.ndarray, temperature: float) -> tuple[list, list]:
    """One row at a time, in float64, from exact sums of probabilities."""
    logprobs, entropies = [], []
    for row, token in zip(logits.astype(np.float64), ids, strict=True):
        scaled = row / temperature
        weights = np.exp(scaled - scaled.max())
        p = weights / weights.sum()
        logprobs.append(scaled[token] - scaled.max() - np.log(weights.sum()))
        entropies.append(-sum(q * np.log(q) for q in p if q > 0))
    return logprobs, entropies


def gradient_by_hand(
    logits: np.ndarray, ids: np.ndarray, temperature: float, g: np.ndarray, g_entropy: np.ndarray
) -> np.ndarray:
    """d(sum g logprob + g_entropy H) / dlogits in float64, entry by entry of the formula."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    logp = np.log(np.where(p > 0, p, 1.0))
    entropy = -(p * logp).sum(1, keepdims=True)
    out = -p * (g[:, None] + g_entropy[:, None] * (logp + entropy))
    out[np.arange(len(ids)), ids] += g
    return out / temperature


def error(got: Tensor, exact: np.ndarray | list) -> float:
    """Largest difference from float64; NaN, which torch.empty holds here, stays NaN and fails."""
    return float((got.detach().cpu().double() - torch.as_tensor(np.asarray(exact))).abs().max())


@on_every_backend
@each_dtype
@pytest.mark.parametrize("vocabulary,temperature", [(33, 1.0), (33, 0.7), (1, 1.0), (5003, 2.5)])
def test_values(
    backend: str, device: str, dtype: torch.dtype, vocabulary: int, temperature: float
) -> None:
    logits = (torch.randn(9, vocabulary) * 4).to(dtype)
    ids = torch.randint(0, vocabulary, (9,))
    got = token_logprobs(
        logits.to(device), ids.to(device), temperature, with_entropy=True, backend=backend
    )
    assert got[0].dtype == got[1].dtype == torch.float32
    expected = by_hand(logits.float().numpy(), ids.numpy(), temperature)
    for have, want in zip(got, expected, strict=True):
        assert error(have, want) < 5e-6
    alone = token_logprobs(logits.to(device), ids.to(device), temperature, backend=backend)
    torch.testing.assert_close(alone, got[0], rtol=0, atol=1e-6)


@on_every_backend
@each_dtype
def test_gradients_stay_within_the_error_budget(
    backend: str, device: str, dtype: torch.dtype
) -> None:
    """Error against float64 <= 1.5 times that of torch code in the same dtype, plus 1e-6.

    Triton's interpreter cuts float32 to bf16 instead of rounding: twice the error there.
    """
    logits = (torch.randn(8, 5003) * 4).to(dtype)
    ids, g, g_entropy = torch.randint(0, 5003, (8,)), torch.randn(8), torch.randn(8)
    exact = gradient_by_hand(
        logits.float().numpy(), ids.numpy(), 0.7, g.double().numpy(), g_entropy.double().numpy()
    )

    def gradient(name: str, where: str) -> Tensor:
        x = logits.to(where).requires_grad_()
        pair = token_logprobs(x, ids.to(where), 0.7, with_entropy=True, backend=name)
        return torch.autograd.grad(pair, x, (g.to(where), g_entropy.to(where)))[0]

    got = gradient(backend, device)
    assert got.dtype == dtype
    cut = backend == "triton" and device == "cpu" and dtype == torch.bfloat16
    budget = (3.0 if cut else 1.5) * error(gradient("reference", "cpu"), exact) + 1e-6
    assert error(got, exact) <= budget


@on_every_backend
@pytest.mark.parametrize("part", ["logprobs", "entropy"])
def test_gradient_of_one_output(backend: str, device: str, part: str) -> None:
    logits, ids = torch.randn(4, 70), torch.randint(0, 70, (4,))
    g, zero = torch.randn(4), torch.zeros(4)
    pair = (g, zero) if part == "logprobs" else (zero, g)
    x = logits.to(device).requires_grad_()
    got = token_logprobs(x, ids.to(device), with_entropy=True, backend=backend)
    (got[0] if part == "logprobs" else got[1]).backward(g.to(device))
    weights = (t.double().numpy() for t in pair)
    exact = gradient_by_hand(logits.detach().numpy(), ids.numpy(), 1.0, *weights)
    assert error(x.grad, exact) < 1e-6


@on_every_backend
def test_any_leading_shape_and_any_strides(backend: str, device: str) -> None:
    wide = torch.randn(2, 3, 40, device=device)
    ids = torch.randint(0, 5, (2, 3), device=device)
    for logits in (wide[..., :5], wide[..., 3:23:4], wide[:, :, :5].transpose(0, 1).mT.mT):
        own = ids if logits.shape[0] == 2 else ids.mT
        flat = token_logprobs(logits.reshape(6, 5).clone(), own.reshape(6), backend="reference")
        x = logits.detach().requires_grad_()
        got = token_logprobs(x, own, backend=backend)
        torch.testing.assert_close(got.reshape(6), flat)
        got.sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.shape == logits.shape
    empty = torch.zeros(0, 5, device=device, requires_grad=True)
    none = token_logprobs(empty, ids.new_zeros(0), with_entropy=True, backend=backend)
    assert none[0].shape == none[1].shape == (0,)
    none[0].sum().backward()
    assert empty.grad.shape == (0, 5)
    one = token_logprobs(torch.zeros(5, device=device), ids.new_tensor(2), backend=backend)
    assert one.item() == pytest.approx(-np.log(5))


@on_every_backend
@each_dtype
def test_extreme_logits(backend: str, device: str, dtype: torch.dtype) -> None:
    """1e4 apart, -1e4 throughout, -inf for all but some; also in rows longer than any tile."""
    far = 1e4 if dtype != torch.bfloat16 else 9984.0  # what bf16 holds of it
    rows = torch.tensor([[far, 0.0, 0.0], [-far, -far, -INF], [0.0, -INF, -INF]], dtype=dtype)
    padding = torch.full((3, 5000), -INF, dtype=dtype)
    for logits in (rows, torch.cat([rows, padding], 1), torch.cat([padding, rows], 1)):
        at = logits.shape[1] - 3 if logits[0, 0] == -INF else 0
        x = logits.to(device).requires_grad_()
        ids = torch.tensor([1, 0, 0], device=device) + at
        logprobs, entropy = token_logprobs(x, ids, with_entropy=True, backend=backend)
        assert logprobs[0].item() == -far
        assert logprobs[1].item() == pytest.approx(-np.log(2), abs=1e-6)
        assert logprobs[2].item() == 0.0
        np.testing.assert_allclose(entropy.detach().cpu(), [0.0, np.log(2), 0.0], atol=1e-6)
        (logprobs.sum() + entropy.sum()).backward()
        assert torch.isfinite(x.grad).all()
    impossible = torch.tensor([[0.0, -INF]], dtype=dtype, device=device)
    chosen = torch.tensor([1], device=device)
    assert token_logprobs(impossible, chosen, backend=backend).item() == -INF


@on_every_backend
def test_a_maximum_that_comes_late_or_rises(backend: str, device: str) -> None:
    """Sums carried from tile to tile: rising, falling and one late peak."""
    vocabulary = 9001
    slope = torch.linspace(0, 200, vocabulary)
    peak = torch.zeros(vocabulary)
    peak[-2] = 60.0
    logits = torch.stack([slope, slope.flip(0), peak, -peak])
    ids = torch.tensor([vocabulary - 1, 0, 17, vocabulary - 2])
    got = token_logprobs(logits.to(device), ids.to(device), with_entropy=True, backend=backend)
    for have, want in zip(got, by_hand(logits.numpy(), ids.numpy(), 1.0), strict=True):
        assert error(have, want) < 2e-5


@on_every_backend
@pytest.mark.parametrize("bad", [float("nan"), INF, "all -inf"])
@pytest.mark.parametrize("at", [0, 4999])
def test_what_has_no_answer_is_nan(backend: str, device: str, bad: float | str, at: int) -> None:
    logits = torch.randn(2, 5000)
    if bad == "all -inf":
        logits[0] = -INF
    else:
        logits[0, at] = bad
    x = logits.to(device).requires_grad_()
    ids = torch.tensor([7, 7], device=device)
    logprobs, entropy = token_logprobs(x, ids, with_entropy=True, backend=backend)
    (logprobs.sum() + entropy.sum()).backward()
    for values in (logprobs, entropy):
        assert values.isnan().tolist() == [True, False]
    assert x.grad[0].isnan().all() and torch.isfinite(x.grad[1]).all()


@on_every_backend
def test_inplace_backward_overwrites_the_logits(backend: str, device: str) -> None:
    logits = torch.randn(5, 300, device=device)
    ids, g = torch.randint(0, 300, (5,), device=device), torch.randn(5, device=device)
    apart = logits.clone().requires_grad_()
    token_logprobs(apart, ids, 0.9, backend=backend).backward(g)
    start = logits.clone().requires_grad_()
    hidden = start * 1.0
    out = token_logprobs(hidden, ids, 0.9, backend=backend, inplace_backward=True)
    out.backward(g, retain_graph=True)
    torch.testing.assert_close(start.grad, apart.grad)
    if backend == "reference":
        return
    torch.testing.assert_close(hidden.detach(), apart.grad)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(g)


@on_every_backend
def test_rows_without_upstream_gradient_get_zeros_whatever_they_hold(
    backend: str, device: str
) -> None:
    if backend == "reference":
        pytest.skip("plain torch multiplies, and 0 * NaN is NaN")
    logits = torch.randn(3, 200, device=device)
    logits[1] = float("nan")
    x = logits.requires_grad_()
    out = token_logprobs(x, torch.tensor([3, 3, 3], device=device), backend=backend)
    out.backward(torch.tensor([1.0, 0.0, 1.0], device=device))
    assert (x.grad[1] == 0).all() and torch.isfinite(x.grad).all()


def test_gradcheck_of_the_reference() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(
        lambda x: token_logprobs(x, ids, 0.7, with_entropy=True), (logits,)
    )


@needs_cpu
@pytest.mark.usefixtures("isa")
@each_dtype
def test_each_instruction_set(dtype: torch.dtype) -> None:
    logits = (torch.randn(5, 2077) * 4).to(dtype)
    ids, g = torch.randint(0, 2077, (5,)), torch.randn(5)
    x = logits.requires_grad_()
    got = token_logprobs(x, ids, 0.7, with_entropy=True, backend="cpu")
    torch.autograd.backward(got, (g, g))
    plain = logits.detach().float().numpy()
    for have, want in zip(got, by_hand(plain, ids.numpy(), 0.7), strict=True):
        assert error(have, want) < 5e-6
    exact = gradient_by_hand(plain, ids.numpy(), 0.7, g.double().numpy(), g.double().numpy())
    # One rounding to the dtype, of values that are at most about 3 here, and the float32 sums.
    assert error(x.grad, exact) <= 2 * torch.finfo(dtype).eps + 2e-6


@needs_cpu
def test_threads_change_nothing() -> None:
    logits, ids = torch.randn(700, 400), torch.randint(0, 400, (700,))
    before = torch.get_num_threads()
    alone = token_logprobs(logits, ids, with_entropy=True, backend="cpu")
    try:
        torch.set_num_threads(3)
        together = token_logprobs(logits, ids, with_entropy=True, backend="cpu")
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_more_than_two_to_the_31_logits(backend: str) -> None:
    """The last row starts past 2^31 elements; in place, so that 5 GB are enough."""
    if backend == "cuda" and (reason := backends.why_no_cuda_library()):
        pytest.skip(reason)
    rows, vocabulary = 16500, 131072
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    logits[-1, 5] = 8.0
    ids = torch.full((rows,), 5, device="cuda")
    x = logits.requires_grad_()
    out = token_logprobs(x, ids, backend=backend, inplace_backward=True)
    exact = by_hand(x[-1:].float().detach().cpu().numpy(), np.array([5]), 1.0)[0][0]
    assert out[-1].item() == pytest.approx(exact, abs=1e-5)
    assert out[0].item() == pytest.approx(-np.log(vocabulary), abs=1e-5)
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert dx[-1, 5].item() == pytest.approx(1 - np.exp(exact), rel=1e-2)


@pytest.mark.gpu
def test_few_long_rows_are_split_between_blocks() -> None:
    if reason := backends.why_no_cuda_library():
        pytest.skip(reason)
    logits = torch.randn(3, 131075, device="cuda") * 3
    ids = torch.tensor([0, 131074, 77], device="cuda")
    got = token_logprobs(logits, ids, with_entropy=True, backend="cuda")
    expected = by_hand(logits.cpu().numpy(), ids.cpu().numpy(), 1.0)
    for have, want in zip(got, expected, strict=True):
        assert error(have, want) < 1e-5


def test_blocks_per_row_of_the_cuda_kernel() -> None:
    from visa_kernels.token_logprobs.cuda_kernel import parts_of

    assert parts_of(rows=8192, vocabulary=131072, processors=132) == 1
    assert parts_of(rows=64, vocabulary=131072, processors=132) == 9
    assert parts_of(rows=1, vocabulary=131072, processors=132) == 16
    assert parts_of(rows=1, vocabulary=100, processors=132) == 1


@needs_cpu
def test_float64_takes_the_reference_unless_a_kernel_is_named() -> None:
    logits, ids = torch.randn(2, 5, dtype=torch.float64), torch.tensor([1, 2])
    assert token_logprobs(logits, ids).dtype == torch.float64
    with pytest.raises(backends.BackendError, match="takes float32, bfloat16, float16, not float6"):
        token_logprobs(logits, ids, backend="cpu")


def test_bad_arguments() -> None:
    ids = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(3,\)"):
        token_logprobs(torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="ids must be int64, got torch.int32"):
        token_logprobs(torch.zeros(2, 5), ids.int())
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            token_logprobs(torch.zeros(2, 5), ids, temperature)


@needs_cpu
@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_an_id_outside_the_vocabulary_is_an_error_on_the_cpu(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"ids must be in \[0, 5\), got {wrong} in row 1"):
        token_logprobs(torch.zeros(2, 5), torch.tensor([4, wrong]), backend="cpu")


@each_backend("token_logprobs")
def test_an_id_outside_the_vocabulary_is_nan_in_gpu_kernels(backend: str, device: str) -> None:
    if backend not in ("triton", "cuda"):
        pytest.skip("read back on the CPU, where it is an error")
    ids = torch.tensor([4, 5, -1], device=device)
    got = token_logprobs(torch.zeros(3, 5, device=device), ids, backend=backend)
    assert got.isnan().tolist() == [False, True, True]
