"""Attention with shared prompts: float64 by hand, a repeated prompt, the layout, graphs."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from tests.ops.attention import Sees, by_op, check_budget, mask_of, problem
from tests.ops.backends import each_backend, skip_bf16_dot
from visa_kernels import packed_attention, shared_prefix_attention, shared_prefix_layout

PROMPTS = (37, 0, 64, 5, 1)
COMPLETIONS = ((9, 1, 0, 70), (6, 12), (64,), (), (3, 3, 3))


def layout_of(prompts: tuple[int, ...], completions: tuple[tuple[int, ...], ...]):
    flat = [length for group in completions for length in group]
    return shared_prefix_layout(prompts, flat, [len(group) for group in completions])


def rule(prompts: tuple[int, ...], completions: tuple[tuple[int, ...], ...]) -> Sees:
    """Token by token: (group, completion or -1, place)."""
    owner = []
    for group, (prompt, lengths) in enumerate(zip(prompts, completions, strict=True)):
        owner += [(group, -1)] * prompt
        for member, length in enumerate(lengths):
            owner += [(group, member)] * length

    def sees(i: int, j: int) -> bool:
        (group, member), (key_group, key_member) = owner[i], owner[j]
        if group != key_group:
            return False
        return (key_member == -1 and member != -1) or (member == key_member and j <= i)

    return sees


def op_for(layout, backend: str, device: str, scale: float):
    return partial(
        shared_prefix_attention,
        cu_seqlens=layout.cu_seqlens.to(device),
        cu_groups=layout.cu_groups.to(device),
        scale=scale,
        backend=backend,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@each_backend("shared_prefix_attention")
def test_values_and_gradients(backend: str, device: str, dtype: torch.dtype) -> None:
    skip_bf16_dot(backend, device, dtype)
    layout = layout_of(PROMPTS, COMPLETIONS)
    p = problem(len(layout.position_ids), 2, 1, 32, dtype)
    got = by_op(p, op_for(layout, backend, device, p.scale), device)
    check_budget(got, p, mask_of(len(p.q), rule(PROMPTS, COMPLETIONS)))


@pytest.mark.parametrize("head_dim", [40, 128])
@each_backend("shared_prefix_attention")
def test_head_sizes(backend: str, device: str, head_dim: int) -> None:
    prompts, completions = (40, 3), ((7, 20), (10,))
    layout = layout_of(prompts, completions)
    p = problem(80, 2, 1, head_dim)
    got = by_op(p, op_for(layout, backend, device, p.scale), device)
    check_budget(got, p, mask_of(80, rule(prompts, completions)))


@each_backend("shared_prefix_attention")
def test_equals_a_repeated_prompt(backend: str, device: str) -> None:
    """Gradients of the shared prompt are the sums over its copies."""
    prompt, lengths = 21, (13, 1, 30)
    layout = layout_of((prompt,), (lengths,))
    p = problem(prompt + sum(lengths), 4, 2, 16)
    starts = [prompt + before for before in accumulate(lengths, initial=0)]
    rows = [
        torch.cat([torch.arange(prompt), torch.arange(start, start + length)])
        for start, length in zip(starts, lengths, strict=False)
    ]
    index = torch.cat(rows)
    cu = torch.tensor([0, *accumulate(len(row) for row in rows)])
    seen = torch.cat([torch.arange(len(row)) >= prompt for row in rows])

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rows of completions from the copies, rows of the prompt from the first."""
        out = packed_attention(
            q[index], k[index], v[index], cu, causal=True, scale=p.scale, backend="reference"
        )
        return torch.cat([out[:prompt], out[seen]])

    got = by_op(p, op_for(layout, backend, device, p.scale), device)
    for have, want in zip(got, by_op(p, repeated, "cpu"), strict=True):
        torch.testing.assert_close(have, want, rtol=2e-5, atol=2e-5)


@each_backend("shared_prefix_attention")
def test_groups_of_one_segment_are_plain_causal_sequences(backend: str, device: str) -> None:
    layout = layout_of((20, 0, 7), ((), (), ()))
    p = problem(27, 2, 2, 16)
    got = by_op(p, op_for(layout, backend, device, p.scale), device)
    cu = torch.tensor([0, 20, 20, 27])
    plain = partial(packed_attention, cu_seqlens=cu, causal=True, scale=p.scale)
    for have, want in zip(got, by_op(p, plain, "cpu"), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


@each_backend("shared_prefix_attention")
def test_nothing(backend: str, device: str) -> None:
    layout = layout_of((), ())
    p = problem(0, 2, 1, 16)
    assert by_op(p, op_for(layout, backend, device, 1.0), device)[2].shape == (0, 1, 16)


def test_layout_by_hand() -> None:
    layout = layout_of((2, 0, 3), ((1, 2), (2,), ()))
    assert layout.cu_seqlens.tolist() == [0, 2, 3, 5, 5, 7, 10]
    assert layout.cu_groups.tolist() == [0, 3, 5, 6]
    assert layout.position_ids.tolist() == [0, 1, 2, 2, 3, 0, 1, 0, 1, 2]
    assert layout.completion_mask.int().tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert layout.predictors.tolist() == [1, 1, 3, -1, 5]
    assert layout.cu_seqlens.dtype == layout.cu_groups.dtype == torch.int32


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="2 prompts, 1 group sizes that sum to 1"):
        shared_prefix_layout([1, 2], [3], [1])
    with pytest.raises(ValueError, match="cannot be negative"):
        shared_prefix_layout([-1], [3], [1])
    x, cu = torch.zeros(4, 1, 8), torch.tensor([0, 2, 4])
    with pytest.raises(ValueError, match="cu_groups must rise from 0 to 2"):
        shared_prefix_attention(x, x, x, cu, torch.tensor([0, 1]))


def test_gradients_of_the_reference() -> None:
    layout = layout_of((3, 2), ((2, 1), ()))
    q, k, v = (torch.randn(8, h, 3, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1))
    op = partial(shared_prefix_attention, cu_seqlens=layout.cu_seqlens, cu_groups=layout.cu_groups)
    assert torch.autograd.gradcheck(op, (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    if isa == "none":
        pytest.skip("the extension is missing")
    layout = layout_of(PROMPTS, COMPLETIONS)
    p = problem(len(layout.position_ids), 2, 1, 32, dtype)
    got = by_op(p, op_for(layout, "cpu", "cpu", p.scale), "cpu")
    check_budget(got, p, mask_of(len(p.q), rule(PROMPTS, COMPLETIONS)))


@pytest.mark.slow
@each_backend("shared_prefix_attention")
def test_in_one_compiled_graph(backend: str, device: str) -> None:
    torch.compiler.reset()
    layout = layout_of((5, 0, 3), ((4, 2), (3,), ()))
    p = problem(len(layout.position_ids), 2, 1, 16, torch.float32)
    op = op_for(layout, backend, device, p.scale)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for have, want in zip(by_op(p, compiled, device), by_op(p, op, device), strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.gpu
def test_large_groups_on_a_gpu() -> None:
    """A 512-token prompt and 8 completions of 256, twice, in bf16, without a read-back; the
    gradients are the same on every run.
    """
    layout = layout_of((512, 300), ((256,) * 8, (100, 700, 1))).to("cuda")
    p = problem(len(layout.position_ids), 8, 2, 128, torch.bfloat16)
    q, k, v = p.on("cuda")
    op = op_for(layout, "triton", "cuda", p.scale)
    dout = p.dout.cuda()
    op(q, k, v)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = op(q, k, v)
        grads = torch.autograd.grad(out, (q, k, v), dout)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    again = torch.autograd.grad(op(q, k, v), (q, k, v), dout)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = op_for(layout, "reference", "cuda", p.scale)(*exact)
    wanted_grads = torch.autograd.grad(wanted, exact, dout.double())
    for have, want in zip((out, *grads), (wanted, *wanted_grads), strict=True):
        error = (have.double() - want).norm() / want.norm()
        assert error < 1e-2, error
