"""Linear layers in training through oneDNN, on the CPUs where its float32 products are faster.

torch multiplies float32 matrices with MKL, which on AMD processors with AVX-512 is the slower one.
Gradients of weights, for which oneDNN would copy a factor, are the C++ extension's products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from visa_kernels import packed_gemm

LEAST_TOKENS = 16
"""Fewer tokens than this do not pay for laying the weight out."""


@contextmanager
def onednn_linears(model: nn.Module) -> Iterator[None]:
    """Inside, the model's float32 `nn.Linear` layers compute forward and backward with oneDNN.

    Nothing changes on other devices, for other types, or where torch's own products are the faster
    ones. Keep the backward pass inside too where layers are checkpointed.
    """
    layers = [] if why_not() else [m for m in model.modules() if type(m) is nn.Linear]
    layers = [m for m in layers if "forward" not in vars(m)]
    for layer in layers:
        layer.forward = partial(linear, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@cache
def why_not() -> str | None:
    """None where oneDNN is the faster one on this processor, otherwise why not."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch lacks mkldnn::_linear_pointwise"
    return packed_gemm.why_mkl()


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """x W^T + b for x [..., I], differentiable in all three."""
    few = x.numel() < LEAST_TOKENS * x.shape[-1]
    other = x.dtype != torch.float32 or layer.weight.dtype != torch.float32
    if few or other or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, layer.weight, layer.bias)
    return _Linear.apply(x, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight_OI)
        y_NO = _product(x.reshape(-1, x.shape[-1]), weight_OI, bias_O)
        return y_NO.view(*x.shape[:-1], len(weight_OI))

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        x, weight_OI = ctx.saved_tensors
        dy_NO = dy.reshape(-1, dy.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        dx = _product(dy_NO, weight_OI.t()).view_as(x) if wants_x else None
        dweight = _weight_gradient(dy_NO, x.reshape(-1, x.shape[-1])) if wants_weight else None
        return dx, dweight, dy_NO.sum(0) if wants_bias else None


def _weight_gradient(dy_NO: torch.Tensor, x_NI: torch.Tensor) -> torch.Tensor:
    """dy^T x. The package's own product reads factors as they lie. oneDNN copies its first one
    where that lies transposed: the smaller one then; and its second must not be a part of a wider
    matrix, which oneDNN reads at a crawl.
    """
    if packed_gemm.is_faster(dy_NO):
        dweight_OI = x_NI.new_empty(dy_NO.shape[1], x_NI.shape[1])
        packed_gemm.multiply(dweight_OI, dy_NO.t(), x_NI)
        return dweight_OI
    if x_NI.shape[1] < dy_NO.shape[1]:
        return _product(x_NI.t(), dy_NO.contiguous().t()).t().contiguous()
    return _product(dy_NO.t(), x_NI.contiguous().t())


def _product(
    x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
