"""Known landscapes for the value search: `python -m bench.landscapes [--seeds 10]`.

Each is a reward over [-1, 1]^10 that is 0 at the start (the middle) and 1 at its only optimum, so
that a mean at 0.95 has come 95 % of the way. Prints in how many seeds each strategy gets there
within the budget, and after how many rewards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import machine
from visa_core.config.search import RuleConfig, SearchConfig
from visa_core.search.strategies import make_strategy

DIMENSIONS = 10
GOAL = 0.95

SETTINGS = {
    "sphere": SearchConfig(candidates=16, iterations=40, sigma=0.4),
    "ill-conditioned": SearchConfig(candidates=16, iterations=100, sigma=0.4),
    "rotated": SearchConfig(candidates=16, iterations=100, sigma=0.4),
    "multi-modal": SearchConfig(
        candidates=64, iterations=60, sigma=0.5, rule=RuleConfig(mean_rate=0.5)
    ),
    "noisy": SearchConfig(candidates=32, iterations=60, sigma=0.4),
    "boundary": SearchConfig(candidates=16, iterations=40, sigma=0.4),
}
"""Population and budget of each landscape, the same for all strategies."""


@dataclass(frozen=True)
class Landscape:
    """A reward and where it is largest. `true` is without noise."""

    name: str
    optimum: np.ndarray
    true: Callable[[np.ndarray], np.ndarray]
    noise: float = 0.0

    def rewards(self, points_KD: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """What a search sees, [K]."""
        return self.true(points_KD) + self.noise * generator.standard_normal(len(points_KD))


def landscape(name: str, seed: int) -> Landscape:
    """One of SETTINGS with its optimum drawn by `seed`."""
    generator = np.random.default_rng([seed, 77])
    optimum = generator.uniform(-0.7, 0.7, DIMENSIONS)
    if name == "boundary":
        optimum = np.sign(optimum)  # a corner of the box
    stiff = name in ("ill-conditioned", "rotated")
    scales = 10 ** np.linspace(0, 3, DIMENSIONS) if stiff else np.ones(DIMENSIONS)
    turn = np.eye(DIMENSIONS)
    if name == "rotated":
        turn = np.linalg.qr(generator.standard_normal((DIMENSIONS, DIMENSIONS)))[0]
    waves = 0.1 if name == "multi-modal" else 0.0

    def cost(points: np.ndarray) -> np.ndarray:
        away = (points - optimum) @ turn
        ripple = waves * (1 - np.cos(2 * np.pi * away / 0.35))
        return (scales * away**2 + ripple).sum(-1)

    start = cost(np.zeros(DIMENSIONS))
    noise = 0.2 if name == "noisy" else 0.0
    return Landscape(name, optimum, lambda points: 1 - cost(points) / start, noise)


def climb(place: Landscape, config: SearchConfig) -> dict[str, object]:
    """One search: the true reward of its answer by iteration, spreads, and all candidates."""
    strategy = make_strategy(config, DIMENSIONS)
    generator = np.random.default_rng([config.seed, 99])
    reached, spreads, seen = [], [], []
    for _ in range(config.iterations):
        candidates_KD = strategy.ask()
        strategy.tell(candidates_KD, place.rewards(candidates_KD, generator))
        reached.append(float(place.true(strategy.answer())))
        spreads.append(float(strategy.spread().mean()))
        seen.append(candidates_KD)
    return {"reached": reached, "spreads": spreads, "candidates": np.concatenate(seen)}


def first_at_goal(reached: list[float], candidates: int) -> int | None:
    """Rewards asked for until the answer reaches the goal and stays there; None where it ends
    below.
    """
    below = [i for i, reward in enumerate(reached) if reward < GOAL]
    if below and below[-1] == len(reached) - 1:
        return None
    return candidates * (below[-1] + 2 if below else 1)


def measured(name: str, strategy: str, seeds: int) -> dict[str, object]:
    """Seeds that end at the goal, rewards they needed, and the true reward at the end."""
    used, ends = [], []
    for seed in range(seeds):
        config = replace(SETTINGS[name], strategy=strategy, seed=seed)
        reached = climb(landscape(name, seed), config)["reached"]
        used.append(first_at_goal(reached, config.candidates))
        ends.append(reached[-1])
    solved = [count for count in used if count is not None]
    return {
        "landscape": name,
        "strategy": strategy,
        "budget": SETTINGS[name].candidates * SETTINGS[name].iterations,
        "candidates": SETTINGS[name].candidates,
        "seeds": seeds,
        "solved": len(solved),
        "median_rewards": statistics.median(solved) if solved else None,
        "worst_end": min(ends),
        "median_end": statistics.median(ends),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args(arguments)
    print("| landscape | strategy | K | budget | solved | rewards needed | worst end |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for name in SETTINGS:
        for strategy in ("gaussian", "cma", "random"):
            row = measured(name, strategy, options.seeds)
            rows.append(row)
            needed = "-" if row["median_rewards"] is None else f"{row['median_rewards']:.0f}"
            print(
                f"| {name} | {strategy} | {row['candidates']} | {row['budget']} | "
                f"{row['solved']}/{row['seeds']} | {needed} | {row['worst_end']:.3f} |",
                flush=True,
            )
    if options.out is not None:
        record = {"goal": GOAL, "machine": machine.describe("cpu"), "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
