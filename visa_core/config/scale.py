"""Settings of training on more than one device and of what the optimizer keeps where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """How a stage is spread over ranks (torchrun or deepspeed start them) and how it saves memory.

    The size of a step stays what the settings say whatever the number of ranks: they share its
    prompts, so one rank and two give the same losses.
    """

    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shares out the optimizer's state over the ranks, 2 the gradients
    too, 3 the weights too. 0 keeps all of them on every rank.
    """
    deepspeed_config: Path | None = None
    """More DeepSpeed settings, a JSON file, merged over ours; for --zero 1 and up."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights in training; with bf16 the optimizer keeps float32 masters of them."""
    offload: bool = False
    """Keep the optimizer's masters and moments in host memory."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again."""

    def __post_init__(self) -> None:
        if self.deepspeed_config is not None and not self.zero:
            raise ValueError("--deepspeed-config needs --zero 1, 2 or 3: without it no DeepSpeed")
