"""Linear layers of frozen weights: on a CPU through oneDNN, laid out for it once.

torch's own linear calls MKL there, which leaves the AVX-512 units of AMD processors unused; oneDNN
uses them, and takes bias and GELU along. Both compute in float32.
"""

from __future__ import annotations

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
            return torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias, *activation)
        y_NO = F.linear(x_NI, self.weight, self.bias)
        return F.gelu(y_NO) if self.gelu else y_NO

    def add_to(self, x_NI: torch.Tensor, residual_NO: torch.Tensor) -> torch.Tensor:
        """residual + x W^T + b."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(
                x_NI, residual_NO, self.weight, self.bias, "add"
            )
        return F.linear(x_NI, self.weight, self.bias) + residual_NO


@cache
def why_no_onednn(dtype: torch.dtype) -> str | None:
    """None where torch has oneDNN's linear for a type; otherwise why torch's own is used."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if dtype != torch.float32:
        return f"{dtype} goes to torch's own linear"
    needed = ("_reorder_linear_weight", "_linear_pointwise")
    if not all(hasattr(torch.ops.mkldnn, name) for name in needed):
        return f"this torch lacks {' or '.join(needed)}"
    return None
