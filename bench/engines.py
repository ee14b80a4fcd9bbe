"""GRPO from one start with each engine: `python -m bench.engines --system visa-out [--steps 200]`.

Both engines sample from the weights that are being trained, so the course of a run should not
depend on the engine beyond what the seed does to it. Every (engine, seed) is the embedded recipe's
GRPO stage from the system's SFT model, in a process of its own. What counts is the mean reward of
the last steps: the engines agree where the difference of their means over the seeds is within the
spread (largest minus smallest) of the hf engine's own seeds.

The folder is one that `visa quickstart` wrote; runs that are already there are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import machine

ENGINES = ("hf", "vllm")
FIGURES = ("reward", "cosine", "semantic", "length", "max_abs_dlogp", "ess")
SECONDS = ("target_s", "sample_s", "score_s", "train_s")


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, print the table, write JSON; 1 where the engines disagree."""
    options = parse(arguments)
    if options.engine:
        one_run(options, options.engine, options.seeds[0])
        return 0
    for seed in options.seeds:
        for engine in ENGINES:
            if not finished(folder_of(options, engine, seed)):
                start = [sys.executable, "-m", "bench.engines", *same(options)]
                subprocess.run([*start, "--engine", engine, "--seeds", str(seed)], check=True)
    result = compared(options)
    print(table(result))
    path = options.work / "engines.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"-> {path}")
    return int(not result["agree"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", type=Path, required=True, help="folder of `visa quickstart`")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=16, help="of a step, 8 completions each")
    parser.add_argument("--last", type=int, default=20, help="steps whose mean reward counts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def same(options: argparse.Namespace) -> list[str]:
    """The options that a process of one run is given."""
    names = ("system", "work", "steps", "prompts", "last")
    return [part for name in names for part in (f"--{name}", str(getattr(options, name)))]


def folder_of(options: argparse.Namespace, engine: str, seed: int) -> Path:
    """Where a run is kept."""
    return options.work / f"{engine}-{seed}"


def finished(folder: Path) -> bool:
    """Whether the run in this folder came to its end."""
    path = folder / "run.json"
    return path.is_file() and json.loads(path.read_text()).get("finished", False)


def one_run(options: argparse.Namespace, engine: str, seed: int) -> None:
    """The recipe's GRPO stage with this engine, going on from a checkpoint that is there."""
    from bench.sync import attach
    from visa_core.config.vllm import VLLMSettings
    from visa_trainers import grpo, recipe

    attach()
    torch.set_num_threads(1)
    system, out = options.system, folder_of(options, engine, seed)
    sizes = replace(recipe.FULL, grpo_steps=options.steps)
    config = recipe.grpo(system / "data", system, system / "sft", out, sizes, seed)
    config = replace(
        config,
        batch_size=options.prompts * config.group_size,
        engine=engine,
        vllm=VLLMSettings(kv_cache_gib=0.5),
        resume=(out / "run.json").is_file(),
    )
    grpo.train(config)


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the last steps by engine and seed, and whether the engines agree."""
    runs = {
        engine: {
            str(seed): last_steps(folder_of(options, engine, seed), options.last)
            for seed in options.seeds
        }
        for engine in ENGINES
    }
    rewards = {engine: [run["reward"] for run in found.values()] for engine, found in runs.items()}
    difference = statistics.mean(rewards["vllm"]) - statistics.mean(rewards["hf"])
    spread = max(rewards["hf"]) - min(rewards["hf"])
    return {
        "machine": machine.describe("cpu"),
        "steps": options.steps,
        "prompts": options.prompts,
        "last": options.last,
        "runs": runs,
        "difference": difference,
        "spread_of_hf": spread,
        "agree": abs(difference) <= spread,
    }


def last_steps(folder: Path, count: int) -> dict[str, float]:
    """Means over a run's last steps; seconds of a step are medians over all of them."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {name: statistics.mean(row[name] for row in rows[-count:]) for name in FIGURES}
    found["first_reward"] = rows[0]["reward"]
    steps = [sum(row[name] for name in SECONDS) for row in rows]
    return found | {"step_s": statistics.median(steps), "steps": len(rows)}


def table(result: dict[str, Any]) -> str:
    """The runs as Markdown, and the verdict."""
    lines = [
        "| engine | seed | reward at first | reward | cosine | semantic | max dlogp | s a step |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for engine, runs in result["runs"].items():
        for seed, run in runs.items():
            figures = [f"{run[k]:.3f}" for k in ("first_reward", "reward", "cosine", "semantic")]
            figures += [f"{run['max_abs_dlogp']:.1e}", f"{run['step_s']:.2f}"]
            lines.append(f"| {engine} | {seed} | " + " | ".join(figures) + " |")
    verdict = "agree" if result["agree"] else "DISAGREE"
    lines.append(
        f"\nvllm - hf: {result['difference']:+.3f}; spread of hf's seeds "
        f"{result['spread_of_hf']:.3f}: {verdict}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
