"""The ops inside torch.compile: one graph, the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from visa_kernels import group_advantages, grpo_loss, token_logprobs

IDS = torch.tensor([3, 0, 2, 2, 1])
CU = torch.tensor([0, 2, 5])
OLD = torch.tensor([-1.0, -0.5, -2.0, -1.5, -0.3])
ADV = torch.tensor([1.0, -0.5])


def loss_of_logits(logits: torch.Tensor) -> torch.Tensor:
    logprobs, entropy = token_logprobs(logits, IDS, 0.7, with_entropy=True)
    return grpo_loss(logprobs, OLD, ADV, CU, normalizer=5.0)[0] + entropy.sum()


def gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    function(x).backward()
    return x.grad


@pytest.mark.slow
def test_logprobs_and_loss_in_one_graph() -> None:
    torch.compiler.reset()
    compiled = torch.compile(loss_of_logits, backend="aot_eager", fullgraph=True)
    logits = torch.randn(5, 4)
    torch.testing.assert_close(compiled(logits), loss_of_logits(logits))
    torch.testing.assert_close(gradient(compiled, logits), gradient(loss_of_logits, logits))


@pytest.mark.slow
def test_advantages_keep_their_check_under_compile() -> None:
    torch.compiler.reset()
    groups = torch.tensor([0, 0, 1])
    compiled = torch.compile(lambda r: group_advantages(r, groups), backend="eager")
    rewards = torch.randn(3)
    torch.testing.assert_close(compiled(rewards), group_advantages(rewards, groups))
    with pytest.raises(ValueError, match="rewards must be finite"):
        compiled(torch.tensor([0.0, float("nan"), 1.0]))
