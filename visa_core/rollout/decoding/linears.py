"""A module's linear layers through oneDNN for as long as its weights stand still.

torch's own float32 linear calls MKL on a CPU, which leaves the AVX-512 units of AMD processors
unused. Within the context each layer's forward is replaced; the weights are laid out for oneDNN on
entry, so later changes of them are not seen before the next entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from visa_core.models.prepacked_linear import PrepackedLinear, why_no_onednn

MAX_BYTES = 2**31
"""Models with more weights than this keep torch's linears: the laid-out copy would weigh more."""


@contextmanager
def onednn_linears(model: nn.Module) -> Iterator[None]:
    """Inside, the model's float32 linears on a CPU are oneDNN's; no gradients flow through them."""
    layers = [m for m in model.modules() if type(m) is nn.Linear and _fits(m.weight)]
    if sum(layer.weight.nbytes for layer in layers) > MAX_BYTES:
        layers = []
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _forward(layer)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def _fits(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.ndim == 2 and why_no_onednn(weight.dtype) is None


def _forward(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    bias = None if layer.bias is None else layer.bias.detach()
    packed = PrepackedLinear(layer.weight.detach(), bias)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return packed(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    return forward
