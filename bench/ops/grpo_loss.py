"""Policy loss, its gradient and its metrics on packed rows; rewards go in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import ours
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import grpo_loss

GROUP = 8


def case(rows: int, length: int, **about: Any) -> Case:
    """`rows` completions of `length` tokens, in groups of 8; dapo without a KL."""
    tokens = rows * length

    def build(device: str) -> Inputs:
        old = -torch.rand(tokens, device=device)
        return {
            "logprobs": (old + 0.2 * torch.randn_like(old)).requires_grad_(),
            "old_logprobs": old,
            "rewards": torch.rand(rows, device=device),
            "cu_seqlens": torch.arange(rows + 1, device=device) * length,
            "length": length,
        }

    # Both logprobs are read, the gradient is written.
    moved = 4 * (3 * tokens + 2 * rows)
    return Case(name=f"{rows}x{length}", build=build, bytes_moved=moved, graph=True, **about)


def with_gradient(loss_of: Callable[[Inputs], tuple[Tensor, Any]]) -> Provider:
    """Loss and the gradient of the log-probabilities; the metrics are made and not compared."""

    def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
        loss, _ = loss_of(inputs)
        (gradient,) = torch.autograd.grad(loss, inputs["logprobs"])
        return loss.detach(), gradient

    return run


def backend(name: str) -> Provider:
    def loss_of(inputs: Inputs) -> tuple[Tensor, Any]:
        return grpo_loss(
            inputs["logprobs"],
            inputs["old_logprobs"],
            rewards=inputs["rewards"],
            group_size=GROUP,
            cu_seqlens=inputs["cu_seqlens"],
            normalizer=float(len(inputs["logprobs"])),
            backend=name,
        )

    return with_gradient(loss_of)


def eager(
    logprobs: Tensor, old: Tensor, rewards: Tensor, length: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """As one would write it for rows of one length, with the same metrics and no read-back."""
    groups = rewards.view(-1, GROUP)
    centred = groups - groups.mean(1, keepdim=True)
    advantages = (centred / (groups.std(1, keepdim=True) + 1e-4)).view(-1, 1)
    d = (logprobs - old).view(-1, length)
    ratio = d.exp()
    clipped = ratio.clamp(0.8, 1.2)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum() / logprobs.numel()
    return loss, eager_metrics(d.detach(), ratio.detach(), advantages)


def eager_metrics(d: Tensor, ratio: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    """The metrics that `grpo_loss` gives, [rows, length] in."""
    return {
        "clip_low_frac": ((ratio < 0.8) & (advantages < 0)).float().mean(),
        "clip_high_frac": ((ratio > 1.2) & (advantages > 0)).float().mean(),
        "kl_k1": -d.mean(),
        "kl_k3": (ratio - 1 - d).mean(),
        "ess": ratio.sum().square() / (ratio.square().sum() * d.numel()),
        "max_abs_dlogp": d.abs().max(),
    }


def eager_loss(function: Callable[..., tuple[Tensor, Any]]) -> Provider:
    return with_gradient(
        lambda inputs: function(
            inputs["logprobs"], inputs["old_logprobs"], inputs["rewards"], inputs["length"]
        )
    )


def exact(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """In float64, the eager code."""
    logprobs = inputs["logprobs"].detach().double().requires_grad_()
    wide = {**inputs, "logprobs": logprobs}
    wide |= {name: inputs[name].double() for name in ("old_logprobs", "rewards")}
    return eager_loss(eager)(wide)


register(
    Op(
        name="grpo_loss",
        cases=(
            case(8, 512, headline=True),
            case(64, 1024, headline=True),
            case(128, 34),
            case(128, 1536),
            case(4096, 64),
        ),
        providers={
            "reference": backend("reference"),
            "eager": eager_loss(eager),
            "compile": eager_loss(torch.compile(eager, dynamic=False)),
            **{name: backend(name) for name in ours.names("grpo_loss")},
        },
        exact=exact,
        rtol=1e-6,
        atol=1e-8,
        skip=ours.skip("grpo_loss"),
    )
)
