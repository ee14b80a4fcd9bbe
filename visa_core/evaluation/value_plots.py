"""Pictures of win rates and of value drift, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from visa_core.evaluation.plots import COLOURS, GREY, hang_labels

Profile = Mapping[str, Mapping[str, Any]]
"""Dimension -> its record: title, high, mean, interval, n; mean and interval may be None."""


WIN_RATES = (0.0, 0.5, 1.0)
"""Lowest, middle and highest number of a profile of win rates."""
VALUES = (-1.0, 0.0, 1.0)
"""The same of a profile that a detector read."""


def dimension_bars(
    profiles: Mapping[str, Profile],
    path: Path,
    scale: tuple[float, float, float] = WIN_RATES,
    label: str = "win rate against default answers",
) -> Path:
    """A profile by dimension, a bar a model, with intervals; the dotted line is the scale's middle:
    for win rates 0.5, as the default answers.
    """
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
    axis.axhline(scale[1], color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(names)), [_label(profiles, name) for name in names], fontsize=7)
    axis.set_ylim(scale[0], scale[2])
    axis.set_ylabel(label, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=4)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)


def dimension_radar(
    profiles: Mapping[str, Profile], path: Path, scale: tuple[float, float, float] = WIN_RATES
) -> Path:
    """A profile as a closed line a model, the first one dashed; centre, middle ring and rim are the
    scale.
    """
    low, middle, high = scale
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
    axis.set_ylim(low, high)
    rings = [(low + middle) / 2, middle, (middle + high) / 2, high]
    axis.set_yticks(rings, ["", f"{middle:g}", "", f"{high:g}"], fontsize=6, color=GREY)
    axis.set_xticks(angles, [_label(profiles, name) for name in names], fontsize=7)
    hang_labels(axis, angles)
    axis.grid(color="#dddddd", linewidth=0.5)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)


def _label(profiles: Mapping[str, Profile], name: str) -> str:
    entry = next(iter(profiles.values()))[name]
    return f"{entry['title']}\n(1 = {entry['high']})" if entry["high"] else entry["title"]


def drift_bars(changes: Mapping[str, Profile], path: Path) -> Path:
    """Change of each dimension from the base model, a bar a tuned model, with intervals."""
    figure = Figure(
        figsize=(6.4, 1.2 + 0.3 * len(changes) * len(next(iter(changes.values())))),
        layout="constrained",
    )
    axis = figure.add_subplot()
    names = list(next(iter(changes.values())))
    width = 0.8 / len(changes)
    for i, (model, record) in enumerate(changes.items()):
        known = [(k, record[name]) for k, name in enumerate(names) if record[name]["n"]]
        places = [k - 0.4 + (i + 0.5) * width for k, _ in known]
        means = [entry["mean"] for _, entry in known]
        around = [
            [max(0.0, entry["mean"] - entry["interval"][0]) for _, entry in known],
            [max(0.0, entry["interval"][1] - entry["mean"]) for _, entry in known],
        ]
        colour = COLOURS[(i + 1) % len(COLOURS)]
        axis.barh(places, means, width * 0.92, color=colour, label=model)
        axis.errorbar(means, places, xerr=around, fmt="none", ecolor=GREY, linewidth=0.9, capsize=2)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_yticks(range(len(names)), [_label(changes, name) for name in names], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("change from the base model", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=4)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)
