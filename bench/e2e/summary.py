"""Steps of all providers to medians, ratios and shares of the device's limit."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from bench.e2e.cases import Case, step_flops
from bench.e2e.phases import PHASES

TRAINING = ("logprobs", "loss_backward", "optimizer")
"""Phases of the training part of a step."""
MIB = 2**20

Step = dict[str, Any]


@dataclass
class Found:
    """What the processes answered: steps and memory by provider, and why others have none."""

    steps: dict[str, list[Step]] = field(default_factory=dict)
    memory: dict[str, dict[str, int | None]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def is_ours(provider: str) -> bool:
    """Ours with some engine."""
    return provider.startswith("ours")


def seconds(step: Step, phases: tuple[str, ...] = PHASES) -> float:
    """Wall-clock seconds of some phases of a step."""
    return sum(step["phases"][name] for name in phases)


def summary(case: Case, found: Found, peak_flops: float) -> dict[str, Any]:
    """Figures by provider, and ratios of each peer to each of ours.

    peak_flops: FLOP/s of the device's matrix products in the case's type.
    """
    providers = {
        name: figures(case, steps, found.memory.get(name, {}), peak_flops)
        for name, steps in found.steps.items()
    }
    ours = [name for name in found.steps if is_ours(name)]
    peers = [name for name in found.steps if not is_ours(name)]
    return {
        "providers": providers,
        "ratios": {
            f"{peer} / {own}": ratios(found.steps[peer], found.steps[own])
            | memory_ratios(providers[peer], providers[own])
            for own in ours
            for peer in peers
        },
        "missing": found.missing,
    }


def figures(
    case: Case, steps: list[Step], memory: dict[str, int | None], peak_flops: float
) -> dict[str, Any]:
    """Medians over steps. flops_share: FLOPs that a step needs (see `step_flops`) a second, as a
    share of the device's limit.
    """
    step_s = statistics.median(map(seconds, steps))
    tokens = statistics.median(step["tokens"] for step in steps)
    return {
        "step_s": step_s,
        "cpu_s": statistics.median(step["cpu"] for step in steps),
        "phases_s": {n: statistics.median(step["phases"][n] for step in steps) for n in PHASES},
        "tokens": tokens,
        "tokens_per_s": tokens / step_s,
        "flops_share": step_flops(case, tokens) / step_s / peak_flops,
        "steps": len(steps),
    } | {
        name.replace("bytes", "mib"): None if size is None else round(size / MIB, 1)
        for name, size in memory.items()
    }


def ratios(theirs: list[Step], ours: list[Step]) -> dict[str, list[float]]:
    """How many times faster ours is, least, median and most over neighbouring steps: the whole
    step, its training part, and the whole step in CPU seconds.
    """
    pairs = list(zip(theirs, ours, strict=False))
    return {
        "step": spread([seconds(a) / seconds(b) for a, b in pairs]),
        "training": spread([seconds(a, TRAINING) / seconds(b, TRAINING) for a, b in pairs]),
        "cpu": spread([a["cpu"] / b["cpu"] for a, b in pairs]),
    }


def memory_ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Their peak memory as a multiple of ours."""
    return {
        name: round(theirs[name] / ours[name], 2)
        for name in ("peak_mib", "process_mib")
        if theirs.get(name) and ours.get(name)
    }


def spread(values: list[float]) -> list[float]:
    """Least, median and largest."""
    return [round(x, 2) for x in (min(values), statistics.median(values), max(values))]


def lines(name: str, result: dict[str, Any]) -> list[str]:
    """A table for the terminal and the README."""
    rows = [
        f"| {name} | s a step | CPU s | " + " | ".join(PHASES) + " | tokens/s | peak MiB |"
        " process MiB | of the limit |",
        "|" + "---|" * (len(PHASES) + 7),
    ]
    for provider, row in result["providers"].items():
        phases = " | ".join(f"{row['phases_s'][phase]:.2f}" for phase in PHASES)
        rows.append(
            f"| {provider} | {row['step_s']:.2f} | {row['cpu_s']:.2f} | {phases} |"
            f" {row['tokens_per_s']:.0f} | {_mib(row.get('peak_mib'))} |"
            f" {_mib(row.get('process_mib'))} | {row['flops_share']:.0%} |"
        )
    for pair, ratio in result["ratios"].items():
        low, middle, high = ratio["step"]
        rows.append(
            f"{pair}: {middle:.2f} times the time of a step ({low:.2f} to {high:.2f}),"
            f" training {ratio['training'][1]:.2f}, CPU seconds {ratio['cpu'][1]:.2f}"
            + "".join(
                f", {said} {ratio[key]:.2f}"
                for key, said in (("peak_mib", "memory"), ("process_mib", "memory of the process"))
                if key in ratio
            )
        )
    return rows + [f"{provider}: not run, {why}" for provider, why in result["missing"].items()]


def _mib(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"
