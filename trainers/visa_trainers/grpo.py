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
from visa_core.training.run import batch_rows, open_run, step_seed
from visa_core.training.stage import load_rewriter, make_optimizer, report_set_aside
from visa_core.training.supervised import pick_device, write_result
from visa_core.training.targets import predicted_targets
from visa_core.types import Prompt, RewriteExample, RolloutBatch
from visa_kernels import group_advantages, grpo_loss, loss_normalizer, token_logprobs

Metrics = dict[str, torch.Tensor | float]


def train(config: GRPOConfig) -> Path:
    """Train the rewriter and save it in `config.out`; returns that folder."""
    device = pick_device(config.device)
    rewriter = load_rewriter(config)
    model = rewriter.model.float().to(device)
    reference = copy.deepcopy(model).eval().requires_grad_(False) if config.kl_beta else None
    detector = Detector.from_pretrained(config.detector).to(device)
    translator = None
    if config.translator is not None:
        translator = Translator.from_pretrained(config.translator).to(device)
    fact_analyzer = FactAnalyzer.from_pretrained(config.fact_analyzer, device=device)
    scorer = RewardModel(detector, fact_analyzer, config.reward)
    engine = rewriter.engine()
    sampling = SamplingConfig(
        temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_completion
    )
    examples = load_rewriting(config.data, rewriter.space, seed=config.seed)
    examples = fitting(rewriter, examples)
    total_steps = config.steps or max(1, round(config.epochs * len(examples) / config.prompts))
    policy = Policy(model, reference, rewriter.pad_id, config, total_steps)
    run = open_run(config, total_steps, {"model": model, "optimizer": policy.optimizer}, "grpo")

    for step in run.steps():
        clock = Clock()
        rows = batch_rows(len(examples), config.prompts, config.seed, step)
        batch = [examples[i] for i in rows.tolist()]
        targets_PK = predicted_targets(batch, detector, translator, rewriter.space)
        prompts = [
            rewriter.prompt(e.query, e.response, target)
            for e, target in zip(batch, targets_PK, strict=True)
        ]
        clock.mark("target")
        seed = step_seed(config.seed, step)
        rollouts = engine.generate([p.ids for p in prompts], config.group_size, sampling, seed)
        clock.mark("sample")
        rewards = score(scorer, rewriter, prompts, rollouts)
        clock.mark("score")
        advantages_B = group_advantages(
            rewards.reward, rollouts.group_ids, scale=config.advantage_scale
        )
        metrics = policy.update(prompts, rollouts, advantages_B, step)
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


class Policy:
    """The model in training, its optimizer, and the frozen reference where a KL is asked for."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        pad_id: int,
        config: GRPOConfig,
        total_steps: int,
    ) -> None:
        self.model = model
        self.reference = reference
        self.pad_id = pad_id
        self.config = config
        self.optimizer = make_optimizer(model, config, total_steps * config.updates)

    def update(
        self, prompts: list[Prompt], rollouts: RolloutBatch, advantages_B: torch.Tensor, step: int
    ) -> Metrics:
        """`config.updates` optimizer steps on one sampled batch; returns the last one's metrics.

        The old policy is the one before the first of them. With a single update it is the policy
        itself, so its logprobs are those of the forward pass without their gradient.
        """
        config = self.config
        micros = list(micro_batches(prompts, rollouts, advantages_B, config.batch_size))
        old = self._frozen(self.model, micros) if config.updates > 1 else [None] * len(micros)
        ref = [None] * len(micros)
        if self.reference is not None:
            ref = self._frozen(self.reference, micros)
        lengths = rollouts.lengths
        normalizer = loss_normalizer(config.loss_type, lengths, max_length=config.max_completion)
        for update in range(config.updates):
            parts = []
            for micro, old_N, ref_N in zip(micros, old, ref, strict=True):
                loss, metrics = self.loss(micro, old_N, ref_N, float(normalizer))
                loss.backward()
                parts.append((len(micro.sampler_N), {"loss": loss.detach(), **metrics}))
            progress = self.optimizer.step(step * config.updates + update)
        return merge(parts) | progress

    def loss(
        self,
        micro: MicroBatch,
        old_N: torch.Tensor | None,
        ref_N: torch.Tensor | None,
        normalizer: float,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """This micro-batch's part of the step's clipped loss, and its metrics."""
        config = self.config
        new_N = self.logprobs(self.model, micro)
        return grpo_loss(
            new_N,
            new_N.detach() if old_N is None else old_N,
            micro.advantages_B.to(new_N.device),
            micro.cu_seqlens,
            loss_type=config.loss_type,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            normalizer=normalizer,
            ref_logprobs=ref_N,
            kl_beta=config.kl_beta,
            sampler_logprobs=micro.sampler_N.to(new_N.device),
            sampler_correction=config.sampler_correction,
        )

    def logprobs(self, model: nn.Module, micro: MicroBatch) -> torch.Tensor:
        """Logprobs [N] of the completion tokens at the sampling temperature."""
        with autocast(model.device, self.config.precision):
            logits, ids = completion_logits(model, micro.prompts, micro.completions, self.pad_id)
        return token_logprobs(logits, ids, temperature=self.config.temperature)

    @torch.no_grad()
    def _frozen(self, model: nn.Module, micros: list[MicroBatch]) -> list[torch.Tensor]:
        return [self.logprobs(model, micro) for micro in micros]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass; N counts their completion tokens. A prompt stands once for all of
    its rows, or once a row.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    cu_seqlens: torch.Tensor
    sampler_N: torch.Tensor
    advantages_B: torch.Tensor


def micro_batches(
    prompts: list[Prompt], rollouts: RolloutBatch, advantages_B: torch.Tensor, size: int
) -> Iterator[MicroBatch]:
    """The rows in order, `size` at a time; whole groups keep their prompt once."""
    rows, ends = rollouts.rows(), rollouts.cu_seqlens
    groups = rollouts.group_ids.tolist()
    group_size = len(rows) // len(prompts)
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        shared = group_size if start % group_size == stop % group_size == 0 else 1
        yield MicroBatch(
            prompts=[prompts[g].ids for g in groups[start:stop:shared]],
            completions=rows[start:stop],
            cu_seqlens=ends[start : stop + 1] - ends[start],
            sampler_N=rollouts.logprobs[ends[start] : ends[stop]],
            advantages_B=advantages_B[start:stop],
        )


def merge(parts: list[tuple[int, dict[str, torch.Tensor]]]) -> Metrics:
    """Metrics of a step from those of its micro-batches: the parts of the loss add up, maxima are
    taken over all, the rest is averaged over tokens.
    """
    total = max(1, sum(count for count, _ in parts))
    weights = torch.tensor([count / total for count, _ in parts])
    merged: Metrics = {}
    for key in parts[0][1]:
        values = torch.stack([metrics[key].float().cpu() for _, metrics in parts])
        if key == "loss":
            merged[key] = values.sum()
        else:
            merged[key] = values.max() if key.startswith("max_") else (values * weights).sum()
    return merged


def fitting(rewriter: Rewriter, examples: list[RewriteExample]) -> list[RewriteExample]:
    """Records whose prompt fits the limit whatever the target; the others are set aside and
    counted in a warning.
    """
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
    """What to watch in a run: rewards and their parts, lengths, rows cut, groups that teach
    nothing.
    """
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
