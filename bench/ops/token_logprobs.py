"""Log-probabilities of chosen tokens, forward."""

from __future__ import annotations

from typing import Any

import torch

from bench.registry import Case, Op, register
from visa_kernels import token_logprobs


def case(tokens: int, vocabulary: int) -> Case:
    """fp32 logits [tokens, vocabulary], read once."""

    def build(device: str) -> dict[str, Any]:
        return {
            "logits": torch.randn(tokens, vocabulary, device=device),
            "ids": torch.randint(0, vocabulary, (tokens,), device=device),
        }

    moved = tokens * (4 * vocabulary + 8 + 4)
    return Case(name=f"T={tokens},V={vocabulary}", build=build, bytes_moved=moved)


register(
    Op(
        name="token_logprobs",
        cases=(case(4096, 640), case(256, 32768)),
        providers={"reference": lambda inputs: token_logprobs(**inputs, backend="reference")},
    )
)
