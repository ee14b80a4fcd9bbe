"""Products of large float32 matrices against float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels import packed_gemm
from visa_kernels.linear_logprobs import gemm

MISSING = backends.why_no_extension()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

SMALL = [(1, 1, 1), (12, 32, 4), (13, 33, 5), (25, 67, 300), (5, 200, 31), (100, 3, 17)]
MORE_THAN_A_BLOCK = [(530, 40, 20), (20, 1100, 37), (30, 70, 1037), (520, 1090, 5)]
LAYOUTS = {
    "rows": lambda m, n: torch.randn(m, n),
    "columns": lambda m, n: torch.randn(n, m).t(),
    "part": lambda m, n: torch.randn(m + 2, n + 5)[1:-1, 3 : 3 + n],
    "part of columns": lambda m, n: torch.randn(n + 2, m + 5)[1:-1, 3 : 3 + m].t(),
    "every second": lambda m, n: torch.randn(2 * m, 3 * n)[::2, ::3],
    "one row": lambda m, n: torch.randn(1, n).expand(m, n),
}


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(got: Tensor, a: Tensor, b: Tensor, alpha: float, start: Tensor | None) -> None:
    """Within twice what torch's own float32 product errs by, and a rounding error of the result."""
    exact = alpha * (a.double() @ b.double())
    rounded = alpha * (a @ b)
    if start is not None:
        exact, rounded = exact + 0.5 * start.double(), rounded + 0.5 * start
    own, torchs = ((x.double() - exact).abs().max() for x in (got, rounded))
    assert own <= 2 * torchs + 1e-6 * exact.abs().max(), (own, torchs)


@pytest.mark.parametrize("size", SMALL + MORE_THAN_A_BLOCK)
@pytest.mark.parametrize("alpha,beta", [(1.0, 0.0), (-0.7, 0.5)])
def test_sizes(
    isa: str, threads: int, size: tuple[int, int, int], alpha: float, beta: float
) -> None:
    """Whole tiles and parts of them, one block and several; what beta 0 overwrites is NaN."""
    m, n, k = size
    a, b = torch.randn(m, k), torch.randn(k, n)
    start = torch.randn(m, n) if beta else None
    out = torch.full((m, n), torch.nan) if start is None else start.clone()
    packed_gemm.multiply(out, a, b, alpha=alpha, beta=beta)
    check(out, a, b, alpha, start)


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_strides(isa: str, left: str, right: str) -> None:
    a, b = LAYOUTS[left](29, 41), LAYOUTS[right](41, 70)
    out = torch.full((29, 70), torch.nan)
    packed_gemm.multiply(out, a, b)
    check(out, a, b, 1.0, None)


@pytest.mark.parametrize("layout", ["rows", "columns", "part", "part of columns"])
def test_nothing_beside_a_part_is_written(isa: str, layout: str) -> None:
    a, b, start = torch.randn(29, 41), torch.randn(41, 70), LAYOUTS[layout](29, 70)
    around = torch.empty(0).set_(start.untyped_storage())
    before = around.clone()
    out = start.clone()
    packed_gemm.multiply(start, a, b, beta=0.5)
    check(start, a, b, 1.0, out)
    start.copy_(out)
    assert torch.equal(around, before)


@pytest.mark.parametrize("size", [(0, 5, 3), (5, 0, 3), (5, 7, 0), (0, 0, 0)])
def test_empty(isa: str, threads: int, size: tuple[int, int, int]) -> None:
    """Without any depth the product is 0."""
    m, n, k = size
    start = torch.randn(m, n)
    out = start.clone()
    packed_gemm.multiply(out, torch.randn(m, k), torch.randn(k, n), beta=0.5)
    assert torch.equal(out, 0.5 * start)
    packed_gemm.multiply(out.fill_(torch.nan), torch.randn(m, k), torch.randn(k, n))
    assert torch.equal(out, torch.zeros(m, n))


def test_nan_and_infinity_stay_in_their_rows_and_columns(isa: str) -> None:
    """Panels are filled up with zeros, which must not meet what lies beside."""
    a, b = torch.randn(14, 9), torch.randn(9, 35)
    a[13, 2], b[4, 34] = torch.inf, torch.nan
    out = torch.empty(14, 35)
    packed_gemm.multiply(out, a, b)
    assert out[:13, :34].isfinite().all()
    assert out[13, :34].isinf().all() and out[:, 34].isnan().all()


def test_threads_change_no_bit(isa: str) -> None:
    a, b = torch.randn(300, 700), torch.randn(700, 533)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            outs.append(torch.empty(300, 533))
            packed_gemm.multiply(outs[-1], a, b)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outs[0], out) for out in outs)


def test_what_does_not_fit_is_refused() -> None:
    def refused(match: str, out: Tensor, a: Tensor, b: Tensor) -> None:
        with pytest.raises(ValueError, match=match):
            packed_gemm.multiply(out, a, b)

    x = torch.zeros(4, 4)
    refused("float32", x, x.double(), x)
    refused("CPU", x, x, x.to("meta"))
    refused("shapes", x, x[:3], x)
    refused("shapes", x, x, x[:, :3])
    refused("shapes", x, x[:, :2], x)
    refused("contiguous", torch.zeros(8, 8)[::2, ::2], x, x)


def test_other_types_and_devices_take_torchs_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_gemm, "why_not", lambda: None)
    assert packed_gemm.is_faster(torch.zeros(64, 8))
    assert not packed_gemm.is_faster(torch.zeros(packed_gemm.LEAST_ROWS - 1, 8))
    assert not packed_gemm.is_faster(torch.zeros(64, 8, dtype=torch.bfloat16))
    assert not packed_gemm.is_faster(torch.zeros(64, 8, device="meta"))
    monkeypatch.setattr(packed_gemm, "why_not", lambda: "no")
    assert not packed_gemm.is_faster(torch.zeros(64, 8))


def test_narrower_instruction_sets_leave_it_to_torch(isa: str) -> None:
    if isa != "avx512":
        assert packed_gemm.why_not() is not None


@pytest.mark.parametrize("vocabulary", [1, 37, 300])
@pytest.mark.parametrize("alpha,beta", [(1.0, 0), (0.5, 1)])
def test_products_of_a_loss_head(
    monkeypatch: pytest.MonkeyPatch, isa: str, vocabulary: int, alpha: float, beta: int
) -> None:
    monkeypatch.setattr(packed_gemm, "why_not", lambda: None)
    hidden, weight = torch.randn(20, 48), torch.randn(vocabulary, 48)
    dlogits = torch.randn(20, vocabulary + 3)[:, :vocabulary]
    calls = counted(monkeypatch)
    logits = torch.full((20, vocabulary), torch.nan)
    gemm.logits(hidden, weight, logits)
    dhidden = torch.full((20, 48), torch.nan)
    gemm.hidden_gradient(dlogits, weight, dhidden)
    start = torch.randn(vocabulary, 48)
    dweight = start.clone() if beta else torch.full_like(start, torch.nan)
    gemm.add_weight_gradient(dweight, dlogits, hidden, alpha, beta)
    assert len(calls) == 3
    h, w, g = hidden.double(), weight.double(), dlogits.double()
    for got, want in [
        (logits, h @ w.t()),
        (dhidden, g @ w),
        (dweight, alpha * g.t() @ h + beta * start.double()),
    ]:
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each product."""
    calls: list[None] = []
    product: Callable[..., None] = packed_gemm.multiply

    def counting(*args: Tensor, **scales: float) -> None:
        calls.append(None)
        product(*args, **scales)

    monkeypatch.setattr(packed_gemm, "multiply", counting)
    return calls
