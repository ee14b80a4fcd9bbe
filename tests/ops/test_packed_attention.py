"""Packed attention against float64 softmax by hand: values, gradients, odd shapes, graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.ops.attention import Problem, Sees, by_hand, by_op, check_budget, mask_of, problem
from tests.ops.backends import each_backend, skip_bf16_dot
from visa_kernels import backend as backends
from visa_kernels import packed_attention
from visa_kernels.packed_attention import varlen
from visa_kernels.packed_attention.torch_op import FORWARD

LENGTHS = (5, 0, 1, 67, 130, 0)


def bounds(lengths: tuple[int, ...], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def rule(lengths: tuple[int, ...], causal: bool = False, window: int | None = None) -> Sees:
    """Tokens see each other in their own sequence, keys not ahead of and near the query."""
    owner = [b for b, length in enumerate(lengths) for _ in range(length)]

    def sees(i: int, j: int) -> bool:
        near = window is None or abs(i - j) <= window
        return owner[i] == owner[j] and near and (j <= i or not causal)

    return sees


def run(
    p: Problem, lengths: tuple[int, ...], backend: str, device: str, **settings: object
) -> list[Tensor]:
    op = partial(
        packed_attention,
        cu_seqlens=bounds(lengths).to(device),
        scale=p.scale,
        max_seqlen=max(lengths),
        backend=backend,
        **settings,
    )
    return by_op(p, op, device)


def skip_unfit(backend: str, dtype: torch.dtype) -> None:
    if backend == "varlen" and dtype == torch.float32:
        pytest.skip("torch's varlen attention takes half precision alone")


@pytest.mark.parametrize(
    "causal,window", [(False, None), (True, None), (False, 0), (False, 9), (True, 70)]
)
@each_backend("packed_attention")
def test_values_and_gradients(backend: str, device: str, causal: bool, window: int | None) -> None:
    dtype = torch.bfloat16 if backend == "varlen" else torch.float32
    p = problem(sum(LENGTHS), 2, 1, 32, dtype)
    got = run(p, LENGTHS, backend, device, causal=causal, window=window)
    check_budget(got, p, mask_of(sum(LENGTHS), rule(LENGTHS, causal, window)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [24, 64, 80, 96, 128])
@each_backend("packed_attention")
def test_head_sizes_and_types(backend: str, device: str, head_dim: int, dtype: torch.dtype) -> None:
    skip_unfit(backend, dtype)
    skip_bf16_dot(backend, device, dtype)
    lengths = (40, 1, 29)
    p = problem(70, 2, 1, head_dim, dtype)
    check_budget(run(p, lengths, backend, device), p, mask_of(70, rule(lengths)))


@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (3, 3), (6, 2), (4, 1)])
@each_backend("packed_attention")
def test_grouped_heads(backend: str, device: str, heads: int, kv_heads: int) -> None:
    dtype = torch.float16 if backend == "varlen" else torch.float32
    lengths = (33, 18)
    p = problem(51, heads, kv_heads, 16, dtype)
    got = run(p, lengths, backend, device, causal=True)
    check_budget(got, p, mask_of(51, rule(lengths, causal=True)))


@each_backend("packed_attention")
def test_views_of_one_projection(backend: str, device: str) -> None:
    """q, k and v as they come out of one linear layer, and heads before tokens."""
    dtype = torch.float16 if backend == "varlen" else torch.float32
    p = problem(50, 2, 2, 32, dtype)
    lengths = (20, 30)
    op = partial(
        packed_attention,
        cu_seqlens=bounds(lengths, torch.int64).to(device),
        scale=p.scale,
        max_seqlen=30,
        backend=backend,
    )
    plain = by_op(p, op, device)
    qkv = torch.stack([p.q, p.k, p.v], 1).to(device).requires_grad_()
    out = op(*qkv.unbind(1))
    (grad,) = torch.autograd.grad(out, qkv, p.dout.to(device))
    assert torch.equal(out.detach().cpu(), plain[0])
    for have, want in zip(grad.cpu().unbind(1), plain[1:], strict=True):
        torch.testing.assert_close(have, want)
    turned = [x.to(device).transpose(0, 1).contiguous().transpose(0, 1) for x in (p.q, p.k, p.v)]
    assert torch.equal(op(*turned).cpu(), plain[0])
    strided = [x.to(device).repeat_interleave(2, -1)[..., ::2] for x in (p.q, p.k, p.v)]
    assert torch.equal(op(*strided).cpu(), plain[0])


@each_backend("packed_attention")
def test_nothing_to_attend_to(backend: str, device: str) -> None:
    dtype = torch.float16 if backend == "varlen" else torch.float32
    for lengths in ((0,), (0, 0)) if backend != "varlen" else ():
        assert run(problem(0, 2, 1, 16, dtype), lengths, backend, device)[1].shape == (0, 2, 16)
    p = problem(3, 2, 1, 16, dtype)
    out, dq, dk, dv = run(p, (1, 1, 1), backend, device)
    torch.testing.assert_close(out, p.v.expand(-1, 2, -1))
    for zero in (dq, dk):
        torch.testing.assert_close(
            zero, torch.zeros_like(zero), rtol=0, atol=1e-2 if dtype == torch.float16 else 1e-5
        )
    torch.testing.assert_close(dv, p.dout.sum(1, keepdim=True))


@each_backend("packed_attention")
def test_extreme_scores(backend: str, device: str) -> None:
    """Scores of +-1e4 leave one key to each query; nothing overflows."""
    dtype = torch.float16 if backend == "varlen" else torch.float32
    p = problem(40, 2, 2, 16, dtype)
    q = torch.where(torch.arange(16) == 0, 100.0, 0.0).expand(40, 2, 16)
    k = torch.zeros(40, 2, 16)
    k[:, :, 0] = torch.linspace(-100, 100, 40)[torch.randperm(40)].unsqueeze(1)
    hard = Problem(q=q.to(dtype), k=k.to(dtype), v=p.v, dout=p.dout, scale=1.0)
    got = run(hard, (40,), backend, device)
    winner = int(k[:, 0, 0].argmax())
    torch.testing.assert_close(got[0], p.v[winner].expand(40, -1, -1), rtol=1e-3, atol=1e-3)
    assert all(torch.isfinite(x).all() for x in got)


def test_gradients_of_the_reference() -> None:
    q, k, v = (torch.randn(9, h, 3, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    op = partial(packed_attention, cu_seqlens=bounds((4, 0, 5)), window=2)
    assert torch.autograd.gradcheck(op, (q, k, v))
    p = Problem(q=q.detach(), k=k.detach(), v=v.detach(), dout=torch.ones(9, 4, 3), scale=3**-0.5)
    wanted = by_hand(p, mask_of(9, rule((4, 0, 5), window=2)))[0]
    torch.testing.assert_close(op(q, k, v).detach(), torch.from_numpy(wanted))


def test_bad_arguments() -> None:
    q, k = torch.zeros(4, 2, 8), torch.zeros(4, 1, 8)
    cu = torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"\[N, Hk, D\], got \(4, 2, 8\), \(3, 1, 8\) and"):
        packed_attention(q, k[:3], k[:3], cu)
    with pytest.raises(ValueError, match="multiple of the key heads"):
        packed_attention(q, k.expand(4, 3, 8), k.expand(4, 3, 8), cu)
    with pytest.raises(ValueError, match="from 1 to 256"):
        packed_attention(q.repeat(1, 1, 40), k.repeat(1, 1, 40), k.repeat(1, 1, 40), cu)
    with pytest.raises(ValueError, match="one floating type"):
        packed_attention(q, k.half(), k.half(), cu)
    for wrong in ([0, 3], [1, 4], [0, 5, 4]):
        with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 4"):
            packed_attention(q, k, k, torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"shape \[n \+ 1\], got torch.float32"):
        packed_attention(q, k, k, cu.float())
    with pytest.raises(ValueError, match="window must be at least 0"):
        packed_attention(q, k, k, cu, window=-1)
    with pytest.raises(ValueError, match="scale must be above 0"):
        packed_attention(q, k, k, cu, scale=0.0)


@each_backend("packed_attention")
def test_as_one_operator(backend: str, device: str) -> None:
    """torch's own checks of schema, fake results, gradient registration and compiled graphs."""
    if backend not in FORWARD:
        pytest.skip("not a custom operator of this package")
    q, k, v = problem(12, 2, 1, 16).on(device)
    cu, groups = torch.tensor([0, 5, 8, 12]).to(device), torch.tensor([0, 3]).to(device)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    if backend == "sdpa":
        tests += ("test_aot_dispatch_dynamic",)
    op = torch.ops.visa_kernels.packed_attention.default
    for arguments in ((cu, None, False, 3), (cu, groups, True, -1)):
        torch.library.opcheck(op, (q, k, v, *arguments, 0.3, backend), test_utils=tests)


@pytest.mark.slow
@each_backend("packed_attention")
def test_inside_compile_and_export(backend: str, device: str) -> None:
    """One graph, with the same values and gradients; exported programs keep the operator."""
    torch.compiler.reset()
    dtype = torch.float16 if backend == "varlen" else torch.float32
    p = problem(30, 2, 1, 16, dtype)
    cu = bounds((12, 18)).to(device)

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * packed_attention(q, k, v, cu, window=5, max_seqlen=18, backend=backend)

    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for have, want in zip(by_op(p, compiled, device), by_op(p, op, device), strict=True):
        torch.testing.assert_close(have, want)
    arguments = tuple(x.detach() for x in p.on(device))
    program = torch.export.export(Wrapped(op), arguments, strict=True)
    torch.testing.assert_close(program.module()(*arguments), op(*arguments))


class Wrapped(torch.nn.Module):
    """A function as a module, for torch.export."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [1, 20, 64])
def test_every_instruction_set(isa: str, head_dim: int, dtype: torch.dtype) -> None:
    if isa == "none":
        pytest.skip("the extension is missing")
    p = problem(sum(LENGTHS), 4, 2, head_dim, dtype)
    got = run(p, LENGTHS, "cpu", "cpu", window=70)
    check_budget(got, p, mask_of(sum(LENGTHS), rule(LENGTHS, window=70)))


def test_threads_change_nothing() -> None:
    if backends.why_no_extension() is not None:
        pytest.skip("the extension is missing")
    p = problem(sum(LENGTHS), 4, 2, 16)
    one = run(p, LENGTHS, "cpu", "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = run(p, LENGTHS, "cpu", "cpu")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


@pytest.mark.parametrize("splits", [2, 4])
def test_query_heads_over_several_programs(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keys are few, dk and dv are summed from shares of the query heads."""
    if backends.why_no_triton() is not None or torch.cuda.is_available():
        pytest.skip("needs triton's interpreter")
    from visa_kernels.packed_attention import triton_backward

    monkeypatch.setattr(triton_backward, "head_splits", lambda *_: splits)
    lengths = (20, 13)
    p = problem(33, 8, 2, 16)
    check_budget(run(p, lengths, "triton", "cpu"), p, mask_of(33, rule(lengths)))


class TestChoice:
    """What runs where nothing is asked for."""

    def test_on_a_gpu_by_what_torch_takes(self) -> None:
        half = torch.zeros(1, 1, 64, dtype=torch.bfloat16)
        assert varlen.why_not(half, 10) is None
        assert "max_seqlen" in varlen.why_not(half, None)
        assert "multiples of 8" in varlen.why_not(half[..., :20], 10)
        assert "float32" in varlen.why_not(half.float(), 10)

    def test_float64_goes_to_the_reference(self, caplog: pytest.LogCaptureFixture) -> None:
        x, cu = torch.zeros(2, 1, 8), bounds((2,))
        with pytest.raises(backends.BackendError, match="takes float32, bfloat16, float16, not"):
            packed_attention(x.double(), x.double(), x.double(), cu, backend="sdpa")
        assert packed_attention(x.double(), x.double(), x.double(), cu).dtype == torch.float64

    def test_varlen_is_left_out_for_one_call_and_refused_by_name(self) -> None:
        chosen = backends.choose("packed_attention", "cuda", dtype=torch.float16)
        without = backends.choose(
            "packed_attention", "cuda", dtype=torch.float16, leave_out="varlen"
        )
        assert chosen is varlen.packed_attention and without is not chosen
        asked = backends.choose("packed_attention", "cuda", "varlen", leave_out="varlen")
        with pytest.raises(ValueError, match="cannot run this call: it must be told max_seqlen"):
            asked(*[torch.zeros(2, 1, 8).half()] * 3, bounds((2,)), False, -1, 1.0, None)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "varlen"])
def test_nothing_is_read_back(backend: str) -> None:
    p = problem(300, 4, 2, 64, torch.bfloat16)
    q, k, v = p.on("cuda")
    cu, dout = bounds((100, 0, 200)).cuda(), p.dout.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = packed_attention(q, k, v, cu, max_seqlen=200, backend=backend)
        torch.autograd.grad(out, (q, k, v), dout)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 64])
def test_long_sequences_on_a_gpu(window: int | None) -> None:
    """Many tiles, bf16, against the reference in float64 on the GPU."""
    lengths = (1800, 17, 0, 700, 1)
    p = problem(sum(lengths), 8, 2, 128, torch.bfloat16)
    q, k, v = p.on("cuda")
    cu, dout = bounds(lengths).cuda(), p.dout.cuda()
    out = packed_attention(q, k, v, cu, window=window, scale=p.scale, backend="triton")
    grads = torch.autograd.grad(out, (q, k, v), dout)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = packed_attention(*exact, cu, window=window, scale=p.scale)
    wanted_grads = torch.autograd.grad(wanted, exact, dout.double())
    for have, want in zip((out, *grads), (wanted, *wanted_grads), strict=True):
        error = (have.double() - want).norm() / want.norm()
        assert error < 1e-2, error


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements() -> None:
    """The last sequence is as right as it is alone."""
    length, head_dim = 64, 128
    count = 2**31 // (length * head_dim) + 2
    x = torch.randn(count * length, 1, head_dim, device="cuda", dtype=torch.bfloat16)
    x.requires_grad_()
    cu = torch.arange(count + 1, device="cuda", dtype=torch.int32) * length
    out = packed_attention(x, x, x, cu, backend="triton")
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    last = x[-length:].detach().requires_grad_()
    alone = packed_attention(last, last, last, cu[:2], backend="triton")
    (alone_grad,) = torch.autograd.grad(alone, last, torch.ones_like(alone))
    torch.testing.assert_close(out[-length:], alone)
    torch.testing.assert_close(grad[-length:], alone_grad)
