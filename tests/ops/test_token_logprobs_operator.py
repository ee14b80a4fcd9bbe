"""token_logprobs as a torch operator: opcheck, one graph under compile and export, low overhead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.backends import each_backend
from visa_kernels import backend as backends
from visa_kernels import token_logprobs
from visa_kernels.token_logprobs import torch_op

CPU_MISSING = backends.why_no_extension()
pytestmark = pytest.mark.skipif(CPU_MISSING is not None, reason=str(CPU_MISSING))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 37, dtype=dtype), torch.randint(0, 37, (6,))


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_forward(dtype: torch.dtype, with_entropy: bool) -> None:
    logits, ids = inputs(dtype)
    arguments = (logits.requires_grad_(), ids, 0.7, with_entropy, False, "cpu")
    torch.library.opcheck(torch_op.forward_op, arguments)


@pytest.mark.parametrize("in_place", [False, True])
def test_opcheck_of_the_backward(in_place: bool) -> None:
    logits, ids = inputs()
    _, entropy, stats = torch_op.forward_op(logits, ids, 0.7, True, False, "cpu")
    operator = torch_op.inplace_op if in_place else torch_op.backward_op
    for grads in ((torch.randn(6), torch.randn(6)), (None, torch.randn(6))):
        arguments = (logits.clone(), ids, entropy, stats, *grads, 0.7, "cpu")
        torch.library.opcheck(operator, arguments)


def value_and_gradient(function: object, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.clone().requires_grad_()
    value = function(x, ids)
    value.backward()
    return value.detach(), x.grad


@pytest.mark.slow
@pytest.mark.parametrize("inplace_backward", [False, True])
@each_backend("token_logprobs")
def test_one_graph_under_compile(backend: str, device: str, inplace_backward: bool) -> None:
    def loss(x: Tensor, ids: Tensor) -> Tensor:
        pair = token_logprobs(
            x * 2, ids, 0.7, True, backend, inplace_backward=inplace_backward
        )
        return pair[0].sum() - 0.3 * pair[1].square().sum()

    torch.compiler.reset()
    logits, ids = (x.to(device) for x in inputs())
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for size in (6, 4):  # the second size recompiles with a symbolic one
        got = value_and_gradient(compiled, logits[:size], ids[:size])
        expected = value_and_gradient(loss, logits[:size], ids[:size])
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_export_keeps_the_operator() -> None:
    class Head(torch.nn.Module):
        def forward(self, logits: Tensor, ids: Tensor) -> Tensor:
            return token_logprobs(logits, ids, with_entropy=True, backend="cpu")[0]

    logits, ids = inputs()
    rows = torch.export.Dim("rows", min=2, max=512)
    program = torch.export.export(Head(), (logits, ids), dynamic_shapes=({0: rows}, {0: rows}))
    assert "visa_kernels.token_logprobs" in str(program.graph)
    more = (torch.randn(9, 37), torch.randint(0, 37, (9,)))
    torch.testing.assert_close(program.module()(*more), Head()(*more))


def test_no_gradient_is_computed_for_what_needs_none() -> None:
    logits, ids = inputs()
    assert not token_logprobs(logits, ids, backend="cpu").requires_grad
    x = logits.requires_grad_()
    with torch.no_grad():
        assert not token_logprobs(x, ids, backend="cpu").requires_grad
    logprobs, entropy = token_logprobs(x, ids, with_entropy=True, backend="cpu")
    (only,) = torch.autograd.grad(entropy.sum(), x, retain_graph=True)
    reference = token_logprobs(x, ids, with_entropy=True, backend="reference")[1]
    torch.testing.assert_close(only, torch.autograd.grad(reference.sum(), x)[0])
    assert logprobs.requires_grad
