"""GRPO of the rewriter: the paper's Algorithm 1, to be read from top to bottom.

Shapes: P prompts of a step, G completions each, B = P * G rows, N completion tokens packed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from visa_core.config import GRPOConfig
from visa_core.data.rewriting import load_rewriting
from visa_core.models.rewriter import Rewriter
from visa_core.rollout.engine import ClosingEngine, CopyingEngine, Engine
from visa_core.training.actor import Actor, Scorers
from visa_core.training.adapters import put_adapter, write_adapted
from visa_core.training.clock import Clock
from visa_core.training.distributed import World, joined_world
from visa_core.training.experience import Experience
from visa_core.training.held_out import HeldOut
from visa_core.training.learner import DTYPES, Learner, finish_run
from visa_core.training.micro_batches import FLAT
from visa_core.training.policy import Policy, reference_of
from visa_core.training.run import open_run, step_seed
from visa_core.training.samples import write_samples
from visa_core.training.stage import fitting, load_rewriter
from visa_core.types import RewriteExample


def train(config: GRPOConfig) -> Path:
    """Train the rewriter and save it in `config.out`; returns that folder."""
    with joined_world(config.device) as world:
        return fit(config, world)


def fit(config: GRPOConfig, world: World) -> Path:
    """`train` as one of the ranks of a world."""
    rewriter, examples, total_steps = start(config, world)
    reference = reference_of(rewriter.model, config.kl_beta, frozen_reference(config, world))
    policy = Policy(rewriter.model, reference, rewriter.pad_id, config, total_steps, world)
    learner = policy.learner
    rewriter.model = learner.readable
    engine = rewriter.engine(
        config.engine,
        config.vllm,
        keeps_storage=learner.keeps_storage,
        eager=config.eager_sampling,
    )
    if isinstance(engine, ClosingEngine):
        world.at_end.append(engine.close)
    actor = Actor(rewriter, engine, learner, Scorers(config, world), examples, config, world)
    world.at_end.append(actor.close)
    held_out = held_out_records(actor, rewriter, config)
    run = open_run(config, total_steps, {"learner": learner}, "grpo", world)
    held_out.resume(run.first_step)
    synchronise(engine, learner)

    for step in run.steps():
        clock = Clock()
        prompts = actor.prompts(step, clock)
        first = world.share(config.prompts).start
        batch = actor.collect(prompts, step_seed(config.seed, step), first, clock)
        batch, advantages_B, drawn = actor.informative(batch, step, clock)
        with clock.timed("train"):
            metrics = policy.update(batch.prompts, batch.rollouts, advantages_B, step)
            synchronise(engine, learner)
        seen = world.average(summary(batch, advantages_B), len(batch.rewrites))
        if config.resample.below:
            seen["drawn_again"] = drawn
        with clock.timed("eval"):
            seen |= held_out.evaluate(step, total_steps)
        if config.samples_every and step % config.samples_every == 0 and world.is_main:
            write_samples(config.out, step, config.samples, batch)
        run.log(step, seen | metrics | clock.seconds)

    finish_run(world, learner, config.out, partial(write_adapted, rewriter))
    return config.out


def start(config: GRPOConfig, world: World) -> tuple[Rewriter, list[RewriteExample], int]:
    """The rewriter on the world's device with its adapter, the records, and the number of steps."""
    if config.prompts < world.size:
        raise ValueError(
            f"a step has {config.prompts} prompts (--batch-size x --accumulation / --group-size) "
            f"and there are {world.size} ranks: each needs at least one"
        )
    rewriter = load_rewriter(config)
    put_adapter(rewriter, config.lora, config.seed)
    rewriter.model.to(world.device, DTYPES[config.weights])
    examples = fitting(rewriter, load_rewriting(config.data, rewriter.space, seed=config.seed))
    total_steps = config.steps or max(1, round(config.epochs * len(examples) / config.prompts))
    return rewriter, examples, total_steps


def frozen_reference(config: GRPOConfig, world: World) -> nn.Module | None:
    """The model of --reference, where one is given."""
    if config.reference is None:
        return None
    model = Rewriter.from_pretrained(config.reference, template=config.template).model
    return model.to(world.device, DTYPES[config.weights])


def held_out_records(actor: Actor, rewriter: Rewriter, config: GRPOConfig) -> HeldOut:
    """The evaluation that the settings ask for; without data it does nothing."""
    settings, examples = config.held_out, []
    if settings.data:
        examples = load_rewriting(settings.data, rewriter.space, seed=config.seed)
        examples = fitting(rewriter, examples)
    return HeldOut(actor, examples, settings, config.out, partial(write_adapted, rewriter))


def synchronise(engine: Engine, learner: Learner) -> None:
    """Let the engine sample from the weights as they are now."""
    if isinstance(engine, CopyingEngine) and not learner.keeps_storage:
        engine.load_weights(learner.buckets())
    else:
        engine.weights_updated()


def summary(batch: Experience, advantages_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """What to watch in a run: rewards and their parts, lengths, rows cut, groups that teach
    nothing.
    """
    rewards, rollouts = batch.rewards, batch.rollouts
    groups = advantages_B.view(len(batch.prompts), -1)
    return {
        "reward": rewards.reward.mean(),
        "cosine": rewards.cosine.mean(),
        "semantic": rewards.semantic.mean(),
        "fwd": rewards.consistency.fwd.mean(),
        "bwd": rewards.consistency.bwd.mean(),
        "l2": rewards.l2.mean(),
        "reward_std": rewards.reward.view_as(groups).std(1).mean(),
        "flat_groups": (groups.abs().amax(1) < FLAT).float().mean(),
        "length": rollouts.lengths.float().mean(),
        "unfinished": (~rollouts.finished).float().mean(),
        "non_finite": torch.tensor(float(rewards.non_finite)),
    }
