"""A policy loss without old logprobs: the old policy is the current one, in every combination."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.backends import each_backend
from tests.ops.test_linear_grpo_loss import Batch, on
from visa_kernels import grpo_loss, linear_grpo_loss
from visa_kernels.grpo_loss.op import CORRECTIONS, LOSS_TYPES

on_each = each_backend("linear_grpo_loss")
Results = tuple[list[Tensor], dict[str, Tensor]]


def dense(b: Batch, options: dict[str, Any]) -> Results:
    """All logits in float64, whose detached logprobs are the old ones, and torch's autograd."""
    leaves = {name: x.clone().requires_grad_() for name, x in b.leaves.items()}
    logits = torch.nn.functional.linear(leaves["hidden"], leaves["weight"], leaves["bias"])
    every = logits.log_softmax(-1)
    logprobs = every.gather(-1, b.ids[:, None]).squeeze(-1)
    entropy = -(every.exp() * every).sum(-1).detach()
    loss, metrics = grpo_loss(
        logprobs, logprobs.detach(), b.adv, b.cu, entropy=entropy, backend="reference",
        **{name: x for name, x in options.items() if name not in ("skip_rows", "chunk_tokens")},
    )
    return [loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))], metrics


def fused(b: Batch, options: dict[str, Any], backend: str, device: str) -> Results:
    leaves = {name: x.float().to(device).requires_grad_() for name, x in b.leaves.items()}
    loss, metrics = linear_grpo_loss(
        leaves["hidden"], leaves["weight"], b.ids.to(device), None, b.adv.to(device),
        b.cu.to(device), bias=leaves["bias"], backend=backend, **on(device, options),
    )
    return [loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))], metrics


def near_sampler(b: Batch) -> Tensor:
    """Logprobs of a sampler whose weights fall below, inside and above the band 0.7 to 1.3."""
    return (b.exact + torch.tensor([0.6, -0.1, 0.1, -0.6]).repeat(20)[: len(b.exact)]).float()


@on_each
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_equals_old_logprobs_that_are_the_current_ones(
    backend: str, device: str, loss_type: str, correction: str
) -> None:
    b = Batch()
    options = b.options(loss_type, clip_dual=None if loss_type == "cispo" else 2.0, **b.kl())
    if correction != "none":
        options |= {"sampler_logprobs": near_sampler(b), "sampler_correction": correction}
        options |= {"correction_low": 0.7, "correction_cap": 1.3, "sequence_weight": "geometric"}
    exact, exact_metrics = dense(b, options)
    ours, metrics = fused(b, options, backend, device)
    for got, want in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double().cpu(), want, rtol=2e-5, atol=3e-6)
    assert set(metrics) == set(exact_metrics)
    for name, want in exact_metrics.items():
        assert metrics[name].item() == pytest.approx(want.item(), rel=1e-4, abs=1e-5), name


@on_each
@pytest.mark.parametrize("more", [
    {"skip_rows": False}, {"chunk_tokens": 3}, {"metrics_for_skipped": False}, {"mask": None},
    {"sampler_correction": "sequence_truncate", "metrics_for_skipped": False},
], ids=str)  # fmt: skip
def test_settings_of_speed_change_nothing(
    backend: str, device: str, more: dict[str, Any]
) -> None:
    b = Batch()
    options = b.options("grpo", sampler_logprobs=near_sampler(b), **b.kl()) | more
    if options.get("mask", 1) is not None:
        b.leaves["hidden"][~b.mask] = 7.0
        b.ids[~b.mask] = 0
    exact, _ = dense(b, {k: x for k, x in options.items() if k != "metrics_for_skipped"})
    if options.get("mask", 1) is not None:
        b.leaves["hidden"][~b.mask] = torch.nan
        b.ids[~b.mask] = -100
    ours, _ = fused(b, options, backend, device)
    for got, want in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double().cpu(), want, rtol=2e-5, atol=3e-6)


@on_each
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_dweight_goes_straight_into_an_existing_gradient(
    backend: str, device: str, loss_type: str
) -> None:
    b = Batch()
    options = b.options(loss_type)
    exact, _ = dense(b, options)
    leaves = {name: x.float().to(device) for name, x in b.leaves.items()}
    into = torch.ones_like(leaves["weight"])
    linear_grpo_loss(
        leaves["hidden"], leaves["weight"], b.ids.to(device), None, b.adv.to(device),
        b.cu.to(device), bias=leaves["bias"], accumulate_into=into, backend=backend,
        **on(device, options),
    )
    torch.testing.assert_close(into.double().cpu() - 1, exact[2], rtol=1e-4, atol=3e-6)


@each_backend("grpo_loss")
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_loss_of_logprobs_alone(backend: str, device: str, loss_type: str) -> None:
    """Its gradient is minus the advantage over the normalizer (and the row, where it averages)."""
    b = Batch()
    logprobs = b.exact.to(device).requires_grad_()
    lengths = b.lengths.clamp(min=1).float()
    loss, metrics = grpo_loss(
        logprobs, None, b.adv.to(device), b.cu.to(device), loss_type=loss_type, normalizer=5.0,
        backend=backend,
    )
    loss.backward()
    share = b.adv / 5 / (lengths if loss_type in ("grpo", "gspo") else 1)
    want = -share.repeat_interleave(b.lengths)
    torch.testing.assert_close(logprobs.grad.cpu(), want, rtol=1e-5, atol=1e-7)
    assert metrics["max_abs_dlogp"] == 0 and metrics["clip_low_frac"] == 0


def test_compiles_into_one_graph() -> None:
    b = Batch()
    leaves = {name: x.float() for name, x in b.leaves.items()}

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_grpo_loss(
            hidden, weight, b.ids, None, b.adv, b.cu, loss_type="gspo", normalizer=4.0,
            sampler_logprobs=near_sampler(b), sampler_correction="token_truncate",
        )[0]

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        hidden, weight = (leaves[name].clone().requires_grad_() for name in ("hidden", "weight"))
        results.append(torch.autograd.grad(run(hidden, weight), [hidden, weight]))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
