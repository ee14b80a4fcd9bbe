"""Linear layers of frozen weights: on a CPU through oneDNN, laid out for it once.

torch's own linear calls MKL there, which leaves the AVX-512 units of AMD processors unused; oneDNN
uses them, and takes bias and GELU along. Both compute in the weights' type, float32 or bfloat16,
and sum in float32.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
import torch.nn.functional as F


class PrepackedLinear:
    """gelu(x W^T + b), or without the gelu, for x [N, I] and frozen weights; not differentiable."""

    def __init__(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, *, gelu: bool = False
    ) -> None:
        self.weight, self.bias, self.gelu = weight_OI, bias_O, gelu
        self.onednn = weight_OI.device.type == "cpu" and why_no_onednn(weight_OI.dtype) is None
        if self.onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous())

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        if self.onednn:
            activation = ("gelu", [], "none") if self.gelu else ("none", [], "")
            product = torch.ops.mkldnn._linear_pointwise.default
            return product(x_NI, self.weight, self.bias, *activation)
        y_NO = F.linear(x_NI, self.weight, self.bias)
        return F.gelu(y_NO) if self.gelu else y_NO

    def add_to(self, x_NI: torch.Tensor, residual_NO: torch.Tensor) -> torch.Tensor:
        """residual + x W^T + b; in bfloat16, summed in the residual's type."""
        if self.weight.dtype != torch.float32:
            # oneDNN's sum in bfloat16 costs more than the narrow products, and rounds the residual.
            return residual_NO + self(x_NI)
        if self.onednn:
            # By its overload: finding it among both prints the tensors, 2 % of a pass.
            product = torch.ops.mkldnn._linear_pointwise.binary
            return product(x_NI, residual_NO, self.weight, self.bias, "add")
        return F.linear(x_NI, self.weight, self.bias) + residual_NO


@cache
def why_no_onednn(dtype: torch.dtype) -> str | None:
    """None where torch has oneDNN's linear for a type; otherwise why torch's own is used."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if dtype != torch.float32 and (dtype != torch.bfloat16 or why_no_bfloat16("cpu") is not None):
        return f"{dtype} goes to torch's own linear"
    needed = ("_reorder_linear_weight", "_linear_pointwise")
    if not all(hasattr(torch.ops.mkldnn, name) for name in needed):
        return f"this torch lacks {' or '.join(needed)}"
    return None


@cache
def why_no_bfloat16(device: str) -> str | None:
    """None where products in bfloat16 are faster than in float32 on a kind of device; otherwise why
    they are not.
    """
    if device == "cuda":
        return None if torch.cuda.is_bf16_supported() else "this GPU has no bfloat16"
    if device != "cpu":
        return f"bfloat16 was not tried on {device}"
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this build of torch or this CPU has no bfloat16 in oneDNN"
    has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if platform.machine() in ("x86_64", "AMD64") and not has_products:
        return "this CPU has neither avx512_bf16 nor amx, so bfloat16 would be slower"
    return None
