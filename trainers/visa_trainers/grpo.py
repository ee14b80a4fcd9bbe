"""GRPO of the rewriter: the paper's Algorithm 1, to be read from top to bottom.

Shapes: P prompts of a step, G completions each, B = P * G rows, N completion tokens packed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from visa_core.config import GRPOConfig
from visa_core.data.rewriting import load_rewriting
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.rewards import RewardModel, RewardOutput
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.forward import autocast, completion_logits
from visa_core.training.run import batch_rows, step_seed
from visa_core.training.stage import load_rewriter, make_optimizer, open_run, report_set_aside
from visa_core.training.supervised import pick_device, write_result
from visa_core.training.targets import predicted_targets
from visa_core.types import Prompt, RewriteExample, RolloutBatch
from visa_kernels import group_advantages, grpo_loss, loss_normalizer, token_logprobs


def train(config: GRPOConfig) -> Path:
    """Train the rewriter and save it in `config.out`; returns that folder."""
    device = pick_device(config.device)
    rewriter = load_rewriter(config)
    model = rewriter.model.float().to(device)
    reference = copy.deepcopy(model).eval().requires_grad_(False) if config.kl_beta else None
    detector = Detector.from_pretrained(config.detector)
    translator = Translator.from_pretrained(config.translator) if config.translator else None
    scorer = RewardModel(detector, FactAnalyzer.from_pretrained(config.fact_analyzer), config.reward)
    engine = rewriter.engine()
    sampling = SamplingConfig(
        temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_completion
    )
    examples = load_rewriting(config.data, rewriter.space, seed=config.seed)
    examples = fitting(rewriter, examples)
    total_steps = config.steps or max(1, round(config.epochs * len(examples) / config.prompts))
    optimizer = make_optimizer(model, config, total_steps)
    run = open_run(config, total_steps, {"model": model, "optimizer": optimizer}, "grpo")

    for step in run.steps():
        clock = Clock()
        batch = [examples[i] for i in batch_rows(len(examples), config.prompts, config.seed, step).tolist()]
        targets_PK = predicted_targets(batch, detector, translator, rewriter.space)
        prompts = [
            rewriter.prompt(e.query, e.response, target) for e, target in zip(batch, targets_PK, strict=True)
        ]
        clock.mark("target")
        rollouts = engine.generate(
            [p.ids for p in prompts], config.group_size, sampling, step_seed(config.seed, step)
        )
        clock.mark("sample")
        rewards = score(scorer, rewriter, prompts, rollouts)
        clock.mark("score")
        advantages_B = group_advantages(rewards.reward, rollouts.group_ids, scale=config.advantage_scale)
        for metrics in update(model, reference, optimizer, prompts, rollouts, advantages_B, step, rewriter.pad_id, config):
            engine.weights_updated()
        clock.mark("train")
        run.log(step, summary(rewards, rollouts, advantages_B) | metrics | clock.seconds)

    write_result(config.out, rewriter.write)
    return config.out


def score(
    scorer: RewardModel, rewriter: Rewriter, prompts: list[Prompt], rollouts: RolloutBatch
) -> RewardOutput:
    """Rewards of all rows, each against its prompt's source and target."""
    asked = [prompts[i] for i in rollouts.group_ids.tolist()]
    return scorer.score(
        [p.query for p in asked],
        [p.source for p in asked],
        rewriter.decode(rollouts),
        torch.stack([p.target for p in asked]),
        finished=rollouts.finished,
    )


def update(
    model: nn.Module,
    reference: nn.Module | None,
    optimizer: object,
    prompts: list[Prompt],
    rollouts: RolloutBatch,
    advantages_B: torch.Tensor,
    step: int,
    pad_id: int,
    config: GRPOConfig,
) -> Iterator[dict[str, torch.Tensor | float]]:
    """`config.updates` optimizer steps on one sampled batch; yields the metrics of each.

    The old policy is the one before the first of them. With a single update it is the policy itself, so its logprobs are
    those of the forward pass without their gradient.
    """
    micros = list(micro_batches(prompts, rollouts, advantages_B, config.batch_size))
    normalizer = loss_normalizer(config.loss_type, rollouts.lengths, max_length=config.max_completion)
    old = [None] * len(micros)
    if config.updates > 1:
        with torch.no_grad():
            old = [logprobs(model, m, pad_id, config) for m in micros]
    ref = [None] * len(micros)
    if reference is not None:
        with torch.no_grad():
            ref = [logprobs(reference, m, pad_id, config) for m in micros]
    for _ in range(config.updates):
        parts = []
        for micro, old_N, ref_N in zip(micros, old, ref, strict=True):
            new_N = logprobs(model, micro, pad_id, config)
            loss, metrics = grpo_loss(
                new_N,
                new_N.detach() if old_N is None else old_N,
                micro.advantages_B.to(new_N.device),
                micro.cu_seqlens,
                loss_type=config.loss_type,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                normalizer=float(normalizer),
                ref_logprobs=ref_N,
                kl_beta=config.kl_beta,
                sampler_logprobs=micro.sampler_N.to(new_N.device),
                sampler_correction=config.sampler_correction,
            )
            loss.backward()
            parts.append((len(new_N), {"loss": loss.detach() * len(micros), **metrics}))
        yield weighted_mean(parts) | optimizer.step(step)


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass; N counts their completion tokens."""

    prompts: list[list[int]]
    completions: list[list[int]]
    cu_seqlens: torch.Tensor
    sampler_N: torch.Tensor
    advantages_B: torch.Tensor


def micro_batches(
    prompts: list[Prompt], rollouts: RolloutBatch, advantages_B: torch.Tensor, size: int
) -> Iterator[MicroBatch]:
    """The rows in order, `size` at a time."""
    rows, ends = rollouts.rows(), rollouts.cu_seqlens
    groups = rollouts.group_ids.tolist()
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        yield MicroBatch(
            prompts=[prompts[g].ids for g in groups[start:stop]],
            completions=rows[start:stop],
            cu_seqlens=ends[start : stop + 1] - ends[start],
            sampler_N=rollouts.logprobs[ends[start] : ends[stop]],
            advantages_B=advantages_B[start:stop],
        )


def logprobs(model: nn.Module, micro: MicroBatch, pad_id: int, config: GRPOConfig) -> torch.Tensor:
    """Logprobs [N] of the completion tokens at the sampling temperature."""
    with autocast(model.device, config.precision):
        logits, ids = completion_logits(model, micro.prompts, micro.completions, pad_id)
    return token_logprobs(logits, ids, temperature=config.temperature)


def weighted_mean(
    parts: list[tuple[int, dict[str, torch.Tensor]]]
) -> dict[str, torch.Tensor]:
    """Metrics of micro-batches put together by their token counts; the loss is already a share of the whole."""
    total = max(1, sum(count for count, _ in parts))
    merged = {}
    for key in parts[0][1]:
        values = torch.stack([metrics[key].float().cpu() for _, metrics in parts])
        weights = torch.tensor([count / total for count, _ in parts])
        merged[key] = values.max() if key.startswith("max_") else (values * weights).sum()
    merged["loss"] = torch.stack([metrics["loss"].float().cpu() for _, metrics in parts]).mean()
    return merged


def fitting(rewriter: Rewriter, examples: list[RewriteExample]) -> list[RewriteExample]:
    """Records whose prompt fits the limit whatever the target; the others are set aside and counted in a warning."""
    kept, problems = [], []
    longest_target = torch.full((rewriter.space.size,), -0.5)
    for example in examples:
        try:
            rewriter.prompt(example.query, example.response, longest_target)
            kept.append(example)
        except ValueError as error:
            problems.append(f"{example.id or 'a record'}: {error}")
    report_set_aside(problems, len(examples))
    return kept


def summary(
    rewards: RewardOutput, rollouts: RolloutBatch, advantages_B: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What to watch in a run: rewards and their parts, lengths, rows cut, groups that teach nothing."""
    groups = advantages_B.view(int(rollouts.group_ids.max()) + 1, -1)
    return {
        "reward": rewards.reward.mean(),
        "cosine": rewards.cosine.mean(),
        "semantic": rewards.semantic.mean(),
        "fwd": rewards.consistency.fwd.mean(),
        "bwd": rewards.consistency.bwd.mean(),
        "l2": rewards.l2.mean(),
        "reward_std": rewards.reward.view_as(groups).std(1).mean(),
        "flat_groups": (groups.abs().amax(1) < 1e-6).float().mean(),
        "length": rollouts.lengths.float().mean(),
        "unfinished": (~rollouts.finished).float().mean(),
    }


class Clock:
    """Seconds of a step's phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """The phase that ends now."""
        now = time.perf_counter()
        self.seconds[f"{name}_s"], self._last = now - self._last, now
