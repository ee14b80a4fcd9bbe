"""GRPO of the rewriter: the paper's Algorithm 1, to be read from top to bottom.

Shapes: P prompts of a step, G completions each, B = P * G rows, N completion tokens packed.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch

from visa_core.config import GRPOConfig
from visa_core.data.rewriting import load_rewriting
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.translator import Translator
from visa_core.rewards import RewardModel, RewardOutput
from visa_core.rollout.engine import ClosingEngine, CopyingEngine, Engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.adapters import put_adapter, write_adapted
from visa_core.training.distributed import World, joined_world
from visa_core.training.learner import DTYPES, Learner, finish_run
from visa_core.training.policy import Policy, reference_of
from visa_core.training.run import batch_rows, open_run, step_seed
from visa_core.training.samples import write_samples
from visa_core.training.stage import fitting, load_rewriter
from visa_core.training.targets import predicted_targets
from visa_core.types import Prompt, RolloutBatch
from visa_kernels import group_advantages


def train(config: GRPOConfig) -> Path:
    """Train the rewriter and save it in `config.out`; returns that folder."""
    with joined_world(config.device) as world:
        return fit(config, world)


def fit(config: GRPOConfig, world: World) -> Path:
    """`train` as one of the ranks of a world."""
    device = world.device
    rewriter = load_rewriter(config)
    put_adapter(rewriter, config.lora, config.seed)
    model = rewriter.model.to(device, DTYPES[config.weights])
    reference = reference_of(model, config.kl_beta)
    detector = Detector.from_pretrained(config.detector).to(device)
    translator = None
    if config.translator is not None:
        translator = Translator.from_pretrained(config.translator).to(device)
    fact_analyzer = FactAnalyzer.from_pretrained(config.fact_analyzer, device=device)
    scorer = RewardModel(detector, fact_analyzer, config.reward)
    sampling = SamplingConfig(
        temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_completion
    )
    examples = load_rewriting(config.data, rewriter.space, seed=config.seed)
    examples = fitting(rewriter, examples)
    total_steps = config.steps or max(1, round(config.epochs * len(examples) / config.prompts))
    policy = Policy(model, reference, rewriter.pad_id, config, total_steps, world)
    learner = policy.learner
    rewriter.model = learner.readable
    engine = rewriter.engine(config.engine, config.vllm, keeps_storage=learner.keeps_storage)
    run = open_run(config, total_steps, {"learner": learner}, "grpo", world)
    synchronise(engine, learner)

    for step in run.steps():
        clock = Clock()
        rows = batch_rows(len(examples), config.prompts, config.seed, step)
        mine = world.share(config.prompts)
        batch = [examples[rows[i]] for i in mine]
        targets_PK = predicted_targets(batch, detector, translator, rewriter.space)
        prompts = [
            rewriter.prompt(e.query, e.response, target)
            for e, target in zip(batch, targets_PK, strict=True)
        ]
        clock.mark("target")
        seed = step_seed(config.seed, step)
        with learner.whole():
            rollouts = engine.generate(
                [p.ids for p in prompts],
                config.group_size,
                sampling,
                seed,
                first_group=mine.start,
            )
        engine.release()
        clock.mark("sample")
        rewrites = rewriter.decode(rollouts)
        rewards = score(scorer, rewrites, prompts, rollouts)
        clock.mark("score")
        advantages_B = group_advantages(
            rewards.reward, rollouts.group_ids, scale=config.advantage_scale
        )
        metrics = policy.update(prompts, rollouts, advantages_B, step)
        synchronise(engine, learner)
        clock.mark("train")
        seen = world.average(summary(rewards, rollouts, advantages_B), len(rollouts.lengths))
        if config.samples_every and step % config.samples_every == 0 and world.is_main:
            write_samples(config.out, step, config.samples, prompts, rollouts, rewrites, rewards)
        run.log(step, seen | metrics | clock.seconds)

    if isinstance(engine, ClosingEngine):
        engine.close()
    finish_run(world, learner, config.out, partial(write_adapted, rewriter))
    return config.out


def synchronise(engine: Engine, learner: Learner) -> None:
    """Let the engine sample from the weights as they are now."""
    if isinstance(engine, CopyingEngine) and not learner.keeps_storage:
        engine.load_weights(learner.buckets())
    else:
        engine.weights_updated()


def score(
    scorer: RewardModel, rewrites: list[str], prompts: list[Prompt], rollouts: RolloutBatch
) -> RewardOutput:
    """Rewards of all rows, each against its prompt's source and target."""
    asked = [prompts[i] for i in rollouts.group_ids.tolist()]
    return scorer.score(
        [p.query for p in asked],
        [p.source for p in asked],
        rewrites,
        torch.stack([p.target for p in asked]),
        finished=rollouts.finished,
    )


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
        "non_finite": torch.tensor(float(rewards.non_finite)),
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
