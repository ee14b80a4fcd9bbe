"""RMS norms in training against float64, and which modules they take the place of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from visa_core.training.rms_norm import fast_norms, rms_norm


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(1, 7, 24), (3, 5, 2, 16), (0, 8), (2, 3)])
def test_values_and_gradients_against_float64(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * scale).requires_grad_()
    weight = torch.randn(shape[-1], requires_grad=True)
    dy = torch.randn(shape)
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, weight))
    wanted = w64 * x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    found = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(found, (x, weight), dy)
    exact = torch.autograd.grad(wanted, (x64, w64), dy.double())
    for grad, right in zip(grads, exact, strict=True):
        size = float(right.abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(grad.double(), right, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("kind", [Qwen3RMSNorm, LlamaRMSNorm])
def test_a_model_computes_the_same_inside(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), kind(6), nn.Linear(6, 6))
    nn.init.normal_(model[1].weight)
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with fast_norms(model):
        y = model[1](model[0](x))
        assert "RMSNorm" in type(y.grad_fn).__name__
        model(x).square().sum().backward()
    assert "forward" not in vars(model[1])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5)


def test_other_norms_and_types_are_left_alone() -> None:
    """Gemma's weight is 1 + w; bfloat16 stays with the module's own code."""
    gemma, qwen = GemmaRMSNorm(4), Qwen3RMSNorm(4).to(torch.bfloat16)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    with fast_norms(nn.ModuleList([gemma, qwen])):
        assert "forward" not in vars(gemma)
        torch.testing.assert_close(gemma(x), x / 7.5**0.5, rtol=1e-5, atol=1e-5)
        assert qwen(x.bfloat16()).dtype == torch.bfloat16
