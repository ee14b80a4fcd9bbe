"""Group advantages of a step's rewards."""

from __future__ import annotations

from typing import Any

import torch

from bench.registry import Case, Op, register
from visa_kernels import group_advantages


def case(prompts: int, group: int) -> Case:
    """`group` completions for each of `prompts` prompts."""
    rows = prompts * group

    def build(device: str) -> dict[str, Any]:
        return {
            "rewards": torch.randn(rows, device=device),
            "group_ids": torch.arange(prompts, device=device).repeat_interleave(group),
        }

    return Case(name=f"{prompts}x{group}", build=build, bytes_moved=(4 + 8 + 4) * rows)


register(
    Op(
        name="group_advantages",
        cases=(case(16, 8), case(1024, 8), case(512, 64)),
        providers={"reference": lambda inputs: group_advantages(**inputs, backend="reference")},
    )
)
