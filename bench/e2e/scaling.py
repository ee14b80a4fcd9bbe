"""How cost grows: `python -m bench.e2e.scaling [--threads 2] [--rounds 5]`.

- Seconds of a whole step of ours over 1, 2, 4 and 8 times as many completions a prompt, the sizes
  in turns, with the line that fits the medians best and the share of the variance it explains.
- Memory of the loss head's forward and backward pass besides its two gradients, over the number of
  sequences of one length and over the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine, memory
from bench.e2e.cases import CASES, Case, prompts_of, write_model
from bench.e2e.ours import Ours

TIMES = (1, 2, 4, 8)
SEQUENCES = (16, 64, 256, 1024)
VOCABULARIES = (8192, 16384, 32768, 65536)
HIDDEN, LENGTH = 256, 32


def main(arguments: list[str] | None = None) -> int:
    """Measure both, print, write JSON."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    case = replace(CASES[options.case], group=options.group)
    found = {
        **machine.describe("cpu"),
        "settings": {**case.as_dict(), "threads": options.threads, "rounds": options.rounds},
        "step": step_times(case, options.rounds),
        "head": head_memory(),
    }
    print("\n".join(lines(found)))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scaling.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"-> {path}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options; `out` is set."""
    parser = argparse.ArgumentParser(prog="python -m bench.e2e.scaling", description=__doc__)
    parser.add_argument(
        "--case", choices=[n for n, c in CASES.items() if c.device == "cpu"], default="64+64"
    )
    parser.add_argument("--group", type=int, default=2, help="completions a prompt at 1 times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    results = Path(__file__).parents[1] / "results"
    options.out = options.out or results / machine.folder_name("cpu")
    return options


def step_times(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of a step by number of completions, wall clock and CPU, each with its line."""
    cases = [replace(case, group=case.group * k, micro_rows=case.rows * k) for k in TIMES]
    with tempfile.TemporaryDirectory() as folder:
        write_model(case, Path(folder))
        sides = [Ours(each, Path(folder), "hf", rounds + 1) for each in cases]
    prompts = prompts_of(case, rounds + 1)
    wall: list[list[float]] = [[] for _ in cases]
    cpu: list[list[float]] = [[] for _ in cases]
    for side in sides:
        side.start()
    for index in range(rounds + 1):
        asked = prompts[index * case.prompts : (index + 1) * case.prompts]
        for place, side in enumerate(sides):
            phases, used, _ = side.step(asked, index)
            if index:  # the first warms up
                wall[place].append(sum(phases.values()))
                cpu[place].append(used)
    counts = [each.rows for each in cases]
    return {
        "completions": counts,
        "wall": fitted(counts, [statistics.median(each) for each in wall]),
        "cpu": fitted(counts, [statistics.median(each) for each in cpu]),
    }


def fitted(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """The least-squares line through points and how much of their variance it explains."""
    slope, start = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (start + slope * np.asarray(x))
    explained = 1 - float((rest**2).sum() / ((np.asarray(y) - np.mean(y)) ** 2).sum())
    return {"seconds": list(y), "start": float(start), "slope": float(slope), "r2": explained}


def head_memory() -> dict[str, Any]:
    """MiB of the loss head besides its gradients, by sequences and by vocabulary."""
    return {
        "sequences": {n: scratch_mib(n, VOCABULARIES[0]) for n in SEQUENCES},
        "vocabulary": {v: scratch_mib(SEQUENCES[1], v) for v in VOCABULARIES},
    }


def scratch_mib(sequences: int, vocabulary: int) -> float | None:
    """Peak memory of one forward and backward pass over sequences of `LENGTH` tokens beyond its
    inputs and the gradients of states and weight; None where the system does not tell.
    """
    from visa_kernels import linear_grpo_loss

    drawn = torch.Generator().manual_seed(0)
    tokens = sequences * LENGTH
    states_ND = torch.randn(tokens, HIDDEN, generator=drawn, requires_grad=True)
    weight_VD = torch.randn(vocabulary, HIDDEN, generator=drawn).mul_(0.02).requires_grad_()
    ids_N = torch.randint(vocabulary, (tokens,), generator=drawn)
    advantages_B = torch.randn(sequences, generator=drawn)
    ends = torch.arange(0, tokens + 1, LENGTH)

    def run() -> tuple[torch.Tensor, ...]:
        loss, _ = linear_grpo_loss(states_ND, weight_VD, ids_N, None, advantages_B, ends)
        return torch.autograd.grad(loss, (states_ND, weight_VD))

    run()
    used = memory.of_call(run, "cpu")
    return None if used is None else round(used.scratch / 2**20, 1)


def lines(found: dict[str, Any]) -> list[str]:
    """What the terminal shows."""
    said = []
    for clock in ("wall", "cpu"):
        line = found["step"][clock]
        points = ", ".join(
            f"{n}: {s:.2f}"
            for n, s in zip(found["step"]["completions"], line["seconds"], strict=True)
        )
        said.append(
            f"seconds ({clock}) by completions: {points}; line {line['start']:.2f} + "
            f"{1e3 * line['slope']:.2f} ms each, R^2 {line['r2']:.4f}"
        )
    for by, row in found["head"].items():
        said.append(
            f"MiB of the loss head by {by}: " + ", ".join(f"{k}: {v}" for k, v in row.items())
        )
    return said


if __name__ == "__main__":
    sys.exit(main())
