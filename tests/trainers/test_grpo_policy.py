"""GRPO's update against a loop in float64, over micro-batches, clip, KL and sampler correction."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.lms import PAD, STOP, VOCAB, random_lm, random_rows
from visa_core.config import GRPOConfig
from visa_core.rollout.hf import HFEngine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.micro_batches import StepBatch, merge, micro_batches
from visa_core.training.policy import Policy
from visa_core.types import Prompt, RolloutBatch
from visa_kernels import LOSS_TYPES, group_advantages

TEMPERATURE, LIMIT, GROUP = 0.8, 9, 4
PROMPTS = [
    Prompt(ids=ids, query="", source="", target=torch.zeros(10))
    for ids in random_rows((6, 3, 8), seed=1)
]
STOPS = [STOP, *range(5, VOCAB, 7)]


def settings(**changes: Any) -> GRPOConfig:
    common = {
        "model": Path("m"),
        "data": ("embedded",),
        "out": Path("o"),
        "detector": Path("d"),
        "fact_analyzer": Path("f"),
        "batch_size": GROUP * len(PROMPTS),
        "accumulation": 1,
        "group_size": GROUP,
        "temperature": TEMPERATURE,
        "max_completion": LIMIT,
        "precision": "fp32",
        "schedule": "constant",
        "warmup": 0.0,
        "max_grad_norm": 1e9,
        "lr": 1e-3,
        "clip_high": 0.3,
    }
    return GRPOConfig(**common | changes)


@pytest.fixture(scope="module")
def start() -> nn.Module:
    """The model that samples; tests train copies of it."""
    return random_lm("qwen3", seed=3, std=0.3)


@pytest.fixture(scope="module")
def rollouts(start: nn.Module) -> RolloutBatch:
    """Rows of many lengths; the sampler's logprobs are a little off, as another engine's are."""
    sampling = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=LIMIT)
    batch = HFEngine(start, STOPS, PAD).generate([p.ids for p in PROMPTS], GROUP, sampling, seed=2)
    assert batch.lengths.min() <= 2 and len(set(batch.lengths.tolist())) > 3
    off = 0.6 * torch.randn(len(batch.tokens), generator=torch.Generator().manual_seed(0))
    return RolloutBatch(
        tokens=batch.tokens,
        cu_seqlens=batch.cu_seqlens,
        group_ids=batch.group_ids,
        logprobs=batch.logprobs + off,
        finished=batch.finished,
    )


@pytest.fixture(scope="module")
def advantages(rollouts: RolloutBatch) -> torch.Tensor:
    rewards = torch.rand(len(rollouts.lengths), generator=torch.Generator().manual_seed(4))
    return group_advantages(rewards, rollouts.group_ids)


def double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def other(model: nn.Module) -> nn.Module:
    """A reference that is not the policy."""
    shifted = copy.deepcopy(model)
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in shifted.parameters():
            weight += 0.03 * torch.randn_like(weight)
    return shifted


class Recorded:
    """A policy whose gradients are kept before each optimizer step."""

    def __init__(self, model: nn.Module, reference: nn.Module | None, config: GRPOConfig) -> None:
        self.policy = Policy(model, reference, PAD, config, total_steps=1)
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.policy.optimizer.optimizers[0].register_step_pre_hook(lambda *_: self.keep(model))

    def keep(self, model: nn.Module) -> None:
        self.gradients.append({n: w.grad.clone() for n, w in model.named_parameters()})

    def update(self, rollouts: RolloutBatch, advantages: torch.Tensor) -> dict[str, float]:
        metrics = self.policy.update(PROMPTS, rollouts, advantages, 0)
        return {name: float(value) for name, value in metrics.items()}


def by_hand(
    model: nn.Module,
    old: nn.Module,
    ref: nn.Module,
    rollouts: RolloutBatch,
    advantages: torch.Tensor,
    kl_beta: float,
) -> torch.Tensor:
    """The token-level loss, row by row and token by token, in float64: sum over tokens of
    -min(r A, clip(r) A) w + beta k3, over the number of tokens.
    """

    def logprobs(lm: nn.Module, prompt: list[int], row: list[int]) -> torch.Tensor:
        logits = lm(torch.tensor([prompt + row]), use_cache=False).logits[0]
        logits = logits[len(prompt) - 1 : -1].double() / TEMPERATURE
        return logits.log_softmax(-1)[range(len(row)), row]

    total, place = torch.zeros((), dtype=torch.float64), 0
    for b, row in enumerate(rollouts.rows()):
        prompt = PROMPTS[b // GROUP].ids
        new = logprobs(model, prompt, row)
        with torch.no_grad():
            before, base = logprobs(old, prompt, row), logprobs(ref, prompt, row)
        for t in range(len(row)):
            ratio = (new[t] - before[t]).exp()
            weight = (before[t] - rollouts.logprobs[place]).exp().clamp(max=2.0)
            gain = torch.minimum(ratio * advantages[b], ratio.clamp(0.8, 1.3) * advantages[b])
            away = base[t] - new[t]
            total = total - gain * weight + kl_beta * (away.exp() - 1 - away)
            place += 1
    return total / place


@pytest.mark.parametrize("kl_beta", [0.0, 0.2])
def test_two_updates_against_a_loop_in_float64(
    start: nn.Module, rollouts: RolloutBatch, advantages: torch.Tensor, kl_beta: float
) -> None:
    old, ref = double(start), double(other(start))
    reference = ref if kl_beta else None
    once = Recorded(double(start), reference, settings(kl_beta=kl_beta, lr=0.01))
    first = once.update(rollouts, advantages)
    expected = by_hand(double(start), old, ref, rollouts, advantages, kl_beta)
    assert first["loss"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)

    twice = Recorded(double(start), reference, settings(kl_beta=kl_beta, lr=0.01, updates=2))
    second = twice.update(rollouts, advantages)
    moved = once.policy.model
    moved.zero_grad()
    expected = by_hand(moved, old, ref, rollouts, advantages, kl_beta)
    expected.backward()
    assert second["loss"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for name, weight in moved.named_parameters():
        torch.testing.assert_close(
            twice.gradients[1][name], weight.grad, rtol=1e-5, atol=1e-6, msg=name
        )
    assert second["clip_low_frac"] > 0 and second["clip_high_frac"] > 0, "the clip must be tested"


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("size", [1, 3, GROUP, 2 * GROUP])
def test_micro_batches_give_the_gradients_of_the_whole(
    start: nn.Module, rollouts: RolloutBatch, advantages: torch.Tensor, loss_type: str, size: int
) -> None:
    """In float64, so that nothing but rounding is forgiven, and with a second update, where
    ratios are not 1. 2 x GROUP leaves a rest; 1 and 3 cut groups apart, which other float32
    roundings within the model's norms and rotations follow from.
    """
    reference = double(other(start))
    common = {"loss_type": loss_type, "kl_beta": 0.1, "updates": 2}
    whole = Recorded(double(start), reference, settings(**common))
    metrics = whole.update(rollouts, advantages)
    size_x = {"batch_size": size, "accumulation": 12 // size}
    parts = Recorded(double(start), reference, settings(**common, **size_x))
    other_metrics = parts.update(rollouts, advantages)
    allowed = 1e-12 if size % GROUP == 0 else 2e-6
    for one, two in zip(whole.gradients, parts.gradients, strict=True):
        for name, grad in one.items():
            error = ((two[name] - grad).abs().max() / grad.abs().max()).item()
            assert error < allowed, f"{name}: {error}"
    for name in metrics.keys() - {"ess"}:
        assert other_metrics[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name


def test_micro_batches_in_single_precision(
    start: nn.Module, rollouts: RolloutBatch, advantages: torch.Tensor
) -> None:
    whole = Recorded(copy.deepcopy(start), None, settings())
    whole.update(rollouts, advantages)
    ones = Recorded(copy.deepcopy(start), None, settings(batch_size=1, accumulation=12))
    ones.update(rollouts, advantages)
    for name, grad in whole.gradients[0].items():
        error = (ones.gradients[0][name] - grad).abs().max() / grad.abs().max()
        assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_clip_acts_from_the_second_update_on(
    start: nn.Module, rollouts: RolloutBatch, advantages: torch.Tensor, loss_type: str
) -> None:
    for updates in (1, 2):
        config = settings(loss_type=loss_type, updates=updates, lr=0.05)
        metrics = Recorded(copy.deepcopy(start), None, config).update(rollouts, advantages)
        clipped = metrics["clip_low_frac"] + metrics["clip_high_frac"]
        assert (clipped > 0) == (updates > 1)


def test_an_update_raises_what_was_better_than_its_group(
    start: nn.Module, rollouts: RolloutBatch, advantages: torch.Tensor
) -> None:
    def preference(model: nn.Module) -> float:
        """Mean over tokens of logprob x advantage."""
        policy = Policy(model, None, PAD, settings(), 1)
        (micro,) = micro_batches(StepBatch(PROMPTS, rollouts, advantages), range(12), 12)
        with torch.no_grad():
            logprobs = policy.logprobs(model, micro)
        return (logprobs * advantages.repeat_interleave(rollouts.lengths)).mean().item()

    model = copy.deepcopy(start)
    before = preference(model)
    Recorded(model, None, settings(sampler_correction="none")).update(rollouts, advantages)
    assert preference(model) > before + 1e-3


def test_equal_rewards_teach_nothing(start: nn.Module, rollouts: RolloutBatch) -> None:
    flat = Recorded(copy.deepcopy(start), None, settings())
    flat.update(rollouts, torch.zeros(12))
    assert all(grad.abs().max() == 0 for grad in flat.gradients[0].values())


def test_the_kl_pulls_to_the_reference(start: nn.Module, rollouts: RolloutBatch) -> None:
    """Without advantages it is all that acts: nothing at the reference itself, else towards it."""
    none = torch.zeros(12)
    at_it = Recorded(copy.deepcopy(start), copy.deepcopy(start), settings(kl_beta=1.0))
    assert at_it.update(rollouts, none)["ref_kl"] == pytest.approx(0, abs=1e-9)
    assert all(grad.abs().max() < 1e-6 for grad in at_it.gradients[0].values())

    model, reference = copy.deepcopy(start), other(start)
    away = Recorded(model, reference, settings(kl_beta=1.0))
    before = away.update(rollouts, none)["ref_kl"]
    assert max(grad.abs().max() for grad in away.gradients[0].values()) > 1e-3
    after = Recorded(model, reference, settings(kl_beta=1.0)).update(rollouts, none)["ref_kl"]
    assert 0 < after < before
    assert all(weight.grad is None for weight in reference.parameters())


@pytest.mark.parametrize("budget", [None, 17, 30, 1000])
@pytest.mark.parametrize("size", [1, 3, GROUP, 2 * GROUP, 12, 100])
def test_micro_batches_hold_each_row_once_with_its_own(
    rollouts: RolloutBatch, advantages: torch.Tensor, size: int, budget: int | None
) -> None:
    batch = StepBatch(PROMPTS, rollouts, advantages)
    micros = micro_batches(batch, range(12), size, budget)
    order = [row for m in micros for row in m.rows]
    assert sorted(order) == list(range(12)) and (budget is not None or order == sorted(order))
    rows = rollouts.rows()
    for m in micros:
        assert m.completions == [rows[row] for row in m.rows]
        assert m.advantages_B.equal(advantages[m.rows])
        assert m.sampler_N.equal(rollouts.logprobs[m.tokens_N])
        assert rollouts.tokens[m.tokens_N].tolist() == [t for row in m.completions for t in row]
        assert m.cu_seqlens.diff().tolist() == [len(row) for row in m.completions]
        copies = [p for p, n in zip(m.prompts, m.group_sizes, strict=True) for _ in range(n)]
        assert copies == [PROMPTS[row // GROUP].ids for row in m.rows]
        if budget is None:
            assert len(m.rows) <= size
            assert len(m.prompts) == len({row // GROUP for row in m.rows}), "read once"
        else:
            assert sum(map(len, m.prompts)) + len(m.sampler_N) <= budget


def test_metrics_of_micro_batches_are_put_together_by_hand() -> None:
    def part(loss: float, share: float, top: float) -> dict[str, torch.Tensor]:
        figures = {"loss": loss, "clip_low_frac": share, "max_abs_dlogp": top}
        return {name: torch.tensor(value) for name, value in figures.items()}

    merged = merge([(30, part(1.0, 0.1, 0.5)), (10, part(0.25, 0.5, 0.2))])
    assert {name: float(value) for name, value in merged.items()} == pytest.approx(
        {"loss": 1.25, "clip_low_frac": 0.2, "max_abs_dlogp": 0.5}
    )
