"""Scoring beside sampling: `python -m bench.overlap --system visa-out [--chunk 4] [--turns 3]`.

Seconds of a GRPO step's sampling and scoring on a system that `visa quickstart` wrote: all prompts
sampled and then scored, the same in chunks one after another, and chunks with `--overlap`, in turns
within one process. Chunks with and without overlap must give the same rewards to the bit; the
status is 1 where they do not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from visa_core.config import GRPOConfig
from visa_core.data.rewriting import load_rewriting
from visa_core.training.actor import Actor, Scorers
from visa_core.training.clock import Clock
from visa_core.training.distributed import World
from visa_core.training.learner import make_learner
from visa_core.training.run import step_seed
from visa_core.training.stage import load_rewriter
from visa_trainers import recipe

WAYS = ("whole", "chunks", "overlap")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 where overlap changes a reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", type=Path, required=True, help="folder of `visa quickstart`")
    parser.add_argument("--chunk", type=int, default=4, help="prompts of a chunk, of 16")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    actors = make_actors(options.system, options.chunk)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    rewards: dict[str, list[torch.Tensor]] = {way: [] for way in WAYS}
    for turn in range(options.turns + 1):
        for way, actor in actors.items():
            for step in range(options.steps):
                passed, found = one_step(actor, step)
                rewards[way].append(found)
                if turn:  # the first turn warms up
                    seconds[way].append(passed)
    base = statistics.median(seconds["chunks"])
    for way in WAYS:
        middle = statistics.median(seconds[way])
        print(f"{way:8} {1e3 * middle:7.0f} ms a step, {base / middle:.2f} x chunks in turn")
    same = all(map(torch.equal, rewards["chunks"], rewards["overlap"]))
    print("the same rewards to the bit" if same else "REWARDS DIFFER")
    return int(not same)


def make_actors(system: Path, chunk: int) -> dict[str, Actor]:
    """An actor for each way over one model and one set of scorers."""
    out = Path(tempfile.gettempdir()) / "unused"
    base = recipe.grpo(system / "data", system, system / "sft", out, recipe.FULL, 0)
    configs = {
        "whole": base,
        "chunks": replace(base, chunk=chunk),
        "overlap": replace(base, chunk=chunk, overlap=True),
    }
    world = World(torch.device("cpu"))
    rewriter = load_rewriter(base)
    learner = make_learner(rewriter.model, base, 1, world)
    scorers = Scorers(base, world)
    examples = load_rewriting(base.data, rewriter.space)

    def actor(config: GRPOConfig) -> Actor:
        return Actor(rewriter, rewriter.engine(), learner, scorers, examples, config, world)

    return {way: actor(config) for way, config in configs.items()}


def one_step(actor: Actor, step: int) -> tuple[float, torch.Tensor]:
    """Seconds of sampling and scoring a step's prompts, and the rewards."""
    prompts = actor.prompts(step, Clock())
    start = time.perf_counter()
    batch = actor.collect(prompts, step_seed(0, step), 0, Clock())
    return time.perf_counter() - start, batch.rewards.reward


if __name__ == "__main__":
    sys.exit(main())
