"""Pictures of win rates and of value drift, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from visa_core.evaluation.plots import COLOURS, GREY

Profile = Mapping[str, Mapping[str, Any]]
"""Dimension -> its record: title, high, mean, interval, n; mean and interval may be None."""


def dimension_bars(profiles: Mapping[str, Profile], path: Path) -> Path:
    """Win rates by dimension, a bar a model, with intervals; 0.5 is as the default answers."""
    names = list(next(iter(profiles.values())))
    figure = Figure(figsize=(max(6.0, 1.6 + 1.5 * len(names)), 3.8), layout="constrained")
    axis = figure.add_subplot()
    width = 0.8 / len(profiles)
    for i, (model, profile) in enumerate(profiles.items()):
        for k, name in enumerate(names):
            entry = profile[name]
            if entry["mean"] is None:
                continue
            x = k - 0.4 + (i + 0.5) * width
            low, high = entry["interval"]
            axis.bar(
                x, entry["mean"], width * 0.92, color=COLOURS[i % len(COLOURS)],
                label=model if k == 0 else None,
            )  # fmt: skip
            axis.errorbar(
                x, entry["mean"], [[entry["mean"] - low], [high - entry["mean"]]],
                color=GREY, linewidth=0.9, capsize=2,
            )  # fmt: skip
    axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(names)), [_label(profiles, name) for name in names], fontsize=7)
    axis.set_ylim(0, 1)
    axis.set_ylabel("win rate against default answers", fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=4)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)


def dimension_radar(profiles: Mapping[str, Profile], path: Path) -> Path:
    """Win rates by dimension as a closed line a model; the rim is 1, the middle ring 0.5."""
    names = list(next(iter(profiles.values())))
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * k / len(names) for k in range(len(names))]
    for i, (model, profile) in enumerate(profiles.items()):
        means = [profile[name]["mean"] for name in names]
        radii = [math.nan if mean is None else mean for mean in means]
        style = "--" if i == 0 else "-"
        colour = COLOURS[i % len(COLOURS)]
        axis.plot([*angles, angles[0]], [*radii, radii[0]], style, color=colour, label=model)
        axis.fill([*angles, angles[0]], [*radii, radii[0]], color=colour, alpha=0.06)
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_ylim(0, 1)
    axis.set_yticks([0.25, 0.5, 0.75, 1], ["", "0.5", "", "1"], fontsize=6, color=GREY)
    axis.set_xticks(angles, [_label(profiles, name) for name in names], fontsize=7)
    axis.tick_params(axis="x", pad=12)
    axis.grid(color="#dddddd", linewidth=0.5)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)


def _label(profiles: Mapping[str, Profile], name: str) -> str:
    entry = next(iter(profiles.values()))[name]
    return f"{entry['title']}\n(1 = {entry['high']})"
