"""Policy loss and its gradient on packed rows."""

from __future__ import annotations

from typing import Any

import torch

from bench.registry import Case, Op, register
from visa_kernels import grpo_loss


def case(rows: int, length: int) -> Case:
    """`rows` completions of `length` tokens each."""
    tokens = rows * length

    def build(device: str) -> dict[str, Any]:
        old = -torch.rand(tokens, device=device)
        return {
            "logprobs": (old + 0.1 * torch.randn_like(old)).requires_grad_(),
            "old_logprobs": old,
            "advantages": torch.randn(rows, device=device),
            "cu_seqlens": torch.arange(rows + 1, device=device) * length,
            "normalizer": float(tokens),
        }

    # Both logprobs are read, the gradient is written.
    return Case(name=f"{rows}x{length}", build=build, bytes_moved=3 * 4 * tokens)


def forward_and_backward(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and the gradient of the log-probabilities."""
    loss, _ = grpo_loss(**inputs, loss_type="dapo", backend="reference")
    (gradient,) = torch.autograd.grad(loss, inputs["logprobs"])
    return loss.detach(), gradient


register(
    Op(
        name="grpo_loss",
        cases=(case(128, 34), case(128, 1536)),
        providers={"reference": forward_and_backward},
    )
)
