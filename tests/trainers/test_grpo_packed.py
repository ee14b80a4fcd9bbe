"""GRPO over packed groups against padded rows: gradients, adapters, memory that runs out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.lms import PAD, random_lm
from tests.trainers.test_grpo_policy import (
    GROUP,
    LIMIT,
    PROMPTS,
    STOPS,
    TEMPERATURE,
    Recorded,
    advantages,
    rollouts,
    settings,
    start,
)
from visa_core.rollout.hf import HFEngine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.forward import completion_logits
from visa_core.training.policy import Policy, reference_of
from visa_core.types import RolloutBatch
from visa_kernels import group_advantages

__all__ = ["advantages", "rollouts", "start"]


def sampled(model: nn.Module) -> tuple[RolloutBatch, torch.Tensor]:
    sampling = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=LIMIT)
    batch = HFEngine(model, STOPS, PAD).generate([p.ids for p in PROMPTS], GROUP, sampling, 2)
    rewards = torch.rand(len(batch.lengths), generator=torch.Generator().manual_seed(4))
    return batch, group_advantages(rewards, batch.group_ids)


def padded_gradients(
    model: nn.Module, batch: RolloutBatch, advantages_B: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor]]:
    """On-policy dapo without correction by plain autograd over one padded row a completion: the
    loss is minus the mean over tokens of ratio x advantage, the ratio 1.
    """
    prompts = [PROMPTS[g].ids for g in batch.group_ids.tolist()]
    logits, ids = completion_logits(model, prompts, batch.rows(), PAD)
    logprobs = (logits / TEMPERATURE).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    ratio = (logprobs - logprobs.detach()).exp()
    loss = -(ratio * advantages_B.repeat_interleave(batch.lengths)).mean()
    loss.backward()
    return loss.item(), {n: w.grad for n, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("budget", [None, 17, 40])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2", "gemma2", "window"])
def test_gradients_equal_the_padded_batch(kind: str, budget: int | None) -> None:
    model = random_lm(kind, seed=3, std=0.3)
    batch, advantages_B = sampled(model)
    loss, wanted = padded_gradients(copy.deepcopy(model), batch, advantages_B)
    sizes = {"token_budget": budget, "max_prompt": 8, "sampler_correction": "none"}
    recorded = Recorded(model, None, settings(**sizes))
    assert recorded.policy.packed == (kind not in ("gemma2", "window"))
    metrics = recorded.update(batch, advantages_B)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    for name, grad in wanted.items():
        error = (recorded.gradients[0][name] - grad).abs().max() / grad.abs().max()
        assert error < 1e-5, (name, error)


def test_flat_groups_stay_out_of_the_forward_pass(start: nn.Module) -> None:
    batch, advantages_B = sampled(start)
    advantages_B[:GROUP] = 0
    policy = Policy(copy.deepcopy(start), None, PAD, settings(), 1)
    _, wanted = padded_gradients(copy.deepcopy(start), batch, advantages_B)
    seen: list[int] = []
    loss = policy.loss

    def watched(model: nn.Module, micro: Any, *rest: Any) -> Any:
        seen.extend(micro.rows)
        return loss(model, micro, *rest)

    policy.loss = watched  # type: ignore[method-assign]
    kept: dict[str, torch.Tensor] = {}
    policy.optimizer.optimizers[0].register_step_pre_hook(
        lambda *_: kept.update({n: w.grad.clone() for n, w in policy.model.named_parameters()})
    )
    policy.update(PROMPTS, batch, advantages_B, 0)
    assert seen == list(range(GROUP, 3 * GROUP))
    for name, grad in wanted.items():
        assert (kept[name] - grad).abs().max() / grad.abs().max() < 2e-5 or grad.abs().max() < 1e-7


def test_completions_that_were_cut_are_left_out(start: nn.Module) -> None:
    batch, advantages_B = sampled(start)
    done = batch.finished
    assert done.any() and not done.all()
    config = settings(mask_truncated=True, sampler_correction="none")
    metrics = Recorded(copy.deepcopy(start), None, config).update(batch, advantages_B)
    tokens = (batch.lengths * done).sum()
    expected = -(advantages_B * batch.lengths * done).sum() / tokens
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_an_adapter_trains_alone_and_its_base_is_the_reference() -> None:
    model = random_lm("lora", seed=3, std=0.3)
    batch, advantages_B = sampled(model)
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    plain = Policy(model, None, PAD, settings(), 1)
    with torch.no_grad(), model.disable_adapter():
        base_N = plain.logprobs(model, _micro(batch))
    reference = reference_of(model, 0.5)
    assert reference is model
    config = settings(kl_beta=0.5, updates=2, lr=0.01)
    policy = Policy(model, reference, PAD, config, 1)
    found: list[torch.Tensor] = []
    frozen = policy._frozen
    policy._frozen = lambda *a: found.append(frozen(*a)) or found[-1]  # type: ignore[method-assign]
    metrics = policy.update(PROMPTS, batch, advantages_B, 0)
    old_N, ref_N = found
    torch.testing.assert_close(ref_N, base_N, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(old_N, batch.logprobs, rtol=1e-4, atol=1e-4)
    assert (old_N - ref_N).abs().max() > 1e-2 and metrics["ref_kl"] > 0
    moved = {n for n, w in model.named_parameters() if not w.equal(before[n])}
    assert moved and all("lora_" in name for name in moved)


def _micro(batch: RolloutBatch) -> Any:
    from visa_core.training.micro_batches import StepBatch, micro_batch

    return micro_batch(StepBatch(PROMPTS, batch, torch.zeros(12)), range(12))


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_out_of_memory_goes_on_with_smaller_micro_batches(
    start: nn.Module, fails_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch, advantages_B = sampled(start)
    model = copy.deepcopy(start)
    _, wanted = padded_gradients(copy.deepcopy(start), batch, advantages_B)
    recorded = Recorded(model, None, settings(sampler_correction="none"))
    policy, learner = recorded.policy, recorded.policy.learner
    rows: list[int] = []
    loss, backward = policy.loss, learner.backward

    def hungry(model: nn.Module, micro: Any, *rest: Any) -> Any:
        rows.append(len(micro.rows))
        if fails_in == "forward" and len(micro.rows) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return loss(model, micro, *rest)

    def half_done(part: torch.Tensor) -> None:
        backward(part)
        if fails_in == "backward" and rows[-1] > 3:
            raise torch.OutOfMemoryError("out of memory")

    policy.loss = hungry  # type: ignore[method-assign]
    learner.backward = half_done  # type: ignore[method-assign]
    recorded.update(batch, advantages_B)
    assert rows[:2] == [12, 6] and rows[-4:] == [3, 3, 3, 3]
    assert "going on with halves" in caplog.text
    for name, grad in wanted.items():
        assert (recorded.gradients[0][name] - grad).abs().max() / grad.abs().max() < 2e-5, name


def test_other_errors_and_single_rows_are_not_retried(start: nn.Module) -> None:
    batch, advantages_B = sampled(start)
    for error in (RuntimeError("shapes differ"), torch.OutOfMemoryError("out of memory")):
        policy = Policy(copy.deepcopy(start), None, PAD, settings(batch_size=1, accumulation=12), 1)

        def failing(*_: Any, error: BaseException = error) -> Any:
            raise error

        policy.loss = failing  # type: ignore[method-assign]
        with pytest.raises(type(error), match=str(error)):
            policy.update(PROMPTS, batch, advantages_B, 0)
