"""Products of linear layers in float8 through torchao, for SFT on GPUs that have them.

Weights, gradients and the optimizer's state stay what they are; before each product both factors
are scaled by their largest magnitude and rounded to float8, and all three products of a layer
(output, gradient of the input, gradient of the weight) run on them (arXiv:2209.05433).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

log = logging.getLogger("visa_core.training")

CAPABILITY = (9, 0)
"""Hopper: the first GPUs whose float8 products torchao's recipe was made for."""
MULTIPLE = 16
"""Sizes of a float8 product are multiples of this."""


def put_fp8(model: nn.Module, *, emulate: bool = False, compile_layers: bool = True) -> int:
    """Exchange the linear layers below the head for torchao's; returns how many.

    The head stays as it is: its rounding would go straight into the loss. Names and types of the
    weights do not change, so the model is saved as before. On a GPU each decoder layer is compiled,
    without which scaling and rounding cost more than the products gain. emulate: the same rounding
    by plain products, on any device, for tests.

    Raises ValueError where torchao or such a GPU is missing, or no layer fits.
    """
    device = next(model.parameters()).device
    if not emulate:
        refuse_device(device)
    convert, settings = import_torchao()
    head = model.get_output_embeddings()  # type: ignore[operator]

    def fits(layer: nn.Module, name: str) -> bool:
        return layer is not head and isinstance(layer, nn.Linear) and divisible(layer)

    # the weight's gradient sums over tokens, of which a batch has any number: padded to a multiple
    wanted = settings(emulate=emulate, pad_inner_dim=not emulate)
    convert(model, config=wanted, module_filter_fn=fits)
    kind = "Float8Linear"
    count = sum(type(module).__name__ == kind for module in model.modules())
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    if not count:
        raise ValueError(
            f"--fp8: none of the {linears} linear layers has sizes that are multiples of {MULTIPLE}"
        )
    log.info("float8 products in %d of %d linear layers", count, linears)
    if compile_layers and device.type == "cuda":
        body = model.base_model
        for part in getattr(body, "layers", [body]):  # type: ignore[union-attr]
            part.compile(dynamic=True)
    return count


def divisible(layer: nn.Linear) -> bool:
    """Whether both sizes are multiples of what float8 products take."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def refuse_device(device: torch.device) -> None:
    """Raise ValueError where the device has no float8 products."""
    if device.type != "cuda":
        raise ValueError(f"--fp8 needs a GPU with float8 products (Hopper or newer), not {device}")
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise ValueError(
            f"--fp8 needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} (Hopper) or "
            f"newer; {torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}"
        )


def import_torchao() -> tuple[Any, Any]:
    """torchao's conversion and its settings; a ValueError that says how to have it."""
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ValueError(
            f"--fp8 needs the package torchao ({error}): pip install 'visa-core[fp8]'"
        ) from error
    return convert_to_float8_training, Float8LinearConfig
