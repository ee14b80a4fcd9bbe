"""Linear layers through oneDNN against float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visa_core.training import onednn_linear
from visa_core.training.onednn_linear import onednn_linears
from visa_kernels import packed_gemm
from visa_kernels.backend import why_no_extension


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN on any CPU that has it, the faster one or not."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN linear")
    monkeypatch.setattr(onednn_linear, "why_not", lambda: None)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [17, 29])
@pytest.mark.parametrize("shape", [(1, 33), (2, 19), (40,)])
def test_values_and_gradients_against_float64(
    shape: tuple[int, ...], outputs: int, bias: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """own: gradients of weights by the C++ extension's product, wherever it is built."""
    if own and why_no_extension() is not None:
        pytest.skip("the extension was not built")
    monkeypatch.setattr(packed_gemm, "why_not", lambda: None if own else "oneDNN's turn")
    torch.manual_seed(0)
    layer = nn.Linear(24, outputs, bias=bias)
    x = torch.randn(*shape, 24, requires_grad=True)
    dy = torch.randn(*shape, outputs)
    with onednn_linears(layer):
        y = layer(x)
    assert "Linear" in type(y.grad_fn).__name__ or "View" in type(y.grad_fn).__name__
    y.backward(dy)
    exact = nn.Linear(24, outputs, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    x64 = x.detach().double().requires_grad_()
    y64 = exact(x64)
    y64.backward(dy.double())
    torch.testing.assert_close(y.double(), y64, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-5, atol=1e-5)
    for name, weight in layer.named_parameters():
        wanted = exact.get_parameter(name).grad
        torch.testing.assert_close(weight.grad.double(), wanted, rtol=1e-5, atol=2e-5)


def test_layers_are_as_before_outside_and_frozen_weights_get_no_gradient() -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    with onednn_linears(layer):
        assert "forward" in vars(layer)
        x = torch.randn(32, 8, requires_grad=True)
        layer(x).sum().backward()
    assert "forward" not in vars(layer) and layer.weight.grad is None and x.grad is not None


def test_other_types_and_few_rows_go_to_torch() -> None:
    layer = nn.Linear(8, 8)
    with onednn_linears(layer):
        few = layer(torch.randn(2, 8))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(64, 8)).dtype == torch.bfloat16
    assert "Addmm" in type(few.grad_fn).__name__
    double = nn.Linear(8, 8).double()
    with onednn_linears(double):
        assert double(torch.randn(64, 8).double()).dtype == torch.float64
