"""The policy loss from hidden states inside torch.compile and torch.export; instruction sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_linear_grpo_loss import Batch, compare, dense
from visa_kernels import backend as backends
from visa_kernels import linear_grpo_loss
from visa_kernels.linear_grpo_loss import plan, torch_op
from visa_kernels.linear_logprobs import torch_op as head_op

without_extension = pytest.mark.skipif(
    backends.why_no_extension() is not None, reason="needs the C++ extension"
)
BACKENDS = [pytest.param("cpu", marks=without_extension), "chunked"]


@without_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    assert isa != "none"
    b = Batch((9, 40), dtype)
    b.old = b.exact
    options = b.options("dapo", clip_low=0.9, clip_high=9.0, softcap=5.0, **b.kl())
    eps = torch.finfo(dtype).eps
    compare(b, options, "cpu", "cpu", dtype, 2.0, max(eps / 2, 2e-6))


@without_extension
def test_threads_agree() -> None:
    b = Batch((9, 40))
    exact, _ = dense(b, b.options("dapo"))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            compare(b, b.options("dapo"), "cpu", "cpu")
    finally:
        torch.set_num_threads(before)


def operator_arguments(backend: str, into: Tensor | None, sequences: bool) -> tuple[Any, ...]:
    b = Batch()
    terms, rows = plan.make_terms(
        b.old, b.adv, b.cu, loss_type="gspo" if sequences else "dapo", normalizer=3.0,
        sampler_logprobs=None, sampler_correction="none", sequence_weight="product",
        correction_low=0.0, correction_cap=2.0, mask=b.mask, **b.kl(),
    )
    hidden, weight, bias = (x.float() for x in b.leaves.values())
    return (
        hidden, weight, b.ids, bias, terms.old_logprobs, terms.advantages, terms.policy_scale,
        terms.ref_logprobs, terms.kl_scale, rows.row_N, rows.mask_N, rows.mask_N > 0,
        rows.count_B, into, 0.7, 3.0, sequences, False, 0.8, 1.2, 1.5, True, True, False, True, 7,
        backend,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_keep_their_contracts(backend: str) -> None:
    operator = torch.ops.visa_kernels.linear_grpo_gradients.default
    torch.library.opcheck(operator, operator_arguments(backend, None, True))
    into = torch.zeros(61, 12)
    torch.library.opcheck(operator, operator_arguments(backend, into, False))


@pytest.mark.slow
def test_operators_of_the_backward_pass_keep_theirs() -> None:
    x = [torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)]
    leaves = [value.clone().requires_grad_() for value in x]
    arguments = (torch.tensor(2.0), *leaves, *x, torch.tensor(1.0), False, "cpu")
    torch.library.opcheck(torch.ops.visa_kernels.with_gradients.default, arguments)
    torch.library.opcheck(torch.ops.visa_kernels.scaled.default, (x[0], torch.tensor(0.5), "cpu"))


@pytest.mark.skipif(
    not (backends.triton_is_interpreted() or torch.cuda.is_available()),
    reason="needs triton's interpreter or a GPU",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_not_rounded_to_the_gradients_type(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from visa_kernels.linear_grpo_loss import triton_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(3, 1001, dtype=dtype, device=device)
    factor = torch.tensor(1 / 3, device=device)
    wanted = (x.double() * factor.double()).to(dtype)
    # The interpreter cuts bfloat16 off where hardware rounds.
    cut = device == "cpu" and dtype == torch.bfloat16
    rtol = torch.finfo(dtype).eps if cut else 0
    torch.testing.assert_close(triton_kernel.scaled(x, factor), wanted, rtol=rtol, atol=1e-9)


class Step(torch.nn.Module):
    """A head with its policy loss."""

    def __init__(self, b: Batch, loss_type: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(b.leaves["weight"].float())
        self.fixed = (b.ids, b.old, b.adv, b.cu)
        self.options = b.options(loss_type, normalizer=9.0, **b.kl())

    def forward(self, hidden: Tensor) -> Tensor:
        loss, metrics = linear_grpo_loss(hidden, self.weight, *self.fixed, **self.options)
        return loss + 0 * metrics["entropy"]


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_one_graph(loss_type: str) -> None:
    torch.compiler.reset()
    b = Batch()
    step, hidden = Step(b, loss_type), b.leaves["hidden"].float().requires_grad_()
    leaves = [hidden, step.weight]
    expected = torch.autograd.grad(step(hidden), leaves)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(hidden), leaves), expected)
    exported = torch.export.export(step, (hidden,))
    torch.testing.assert_close(exported.module()(hidden), step(hidden))


@pytest.mark.slow
def test_accumulation_in_a_graph() -> None:
    torch.compiler.reset()
    b = Batch()
    hidden, weight = b.leaves["hidden"].float().requires_grad_(), b.leaves["weight"].float()

    def step(into: Tensor) -> Tensor:
        return linear_grpo_loss(
            hidden, weight, b.ids, b.old, b.adv, b.cu, accumulate_into=into, normalizer=3.0
        )[0]

    expected, got = torch.zeros_like(weight), torch.zeros_like(weight)
    (wanted,) = torch.autograd.grad(step(expected), hidden)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(got), hidden)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient, wanted)


def test_kernels_of_a_backend_are_imported_when_used() -> None:
    for module in (torch_op, head_op):
        assert module.rows_of("chunked").__name__.endswith("torch_rows")


@pytest.mark.slow
def test_gradcheck_of_the_reference() -> None:
    b = Batch((2, 0, 3))
    leaves = [x.requires_grad_() for x in b.leaves.values()]
    options = b.options("grpo", temperature=0.7, softcap=3.0, **b.kl())

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_grpo_loss(
            hidden, weight, b.ids, b.old.double(), b.adv.double(), b.cu, bias=bias, **options
        )[0]

    assert torch.autograd.gradcheck(run, leaves)
