"""Pictures of a report, drawn without a display. Colours are Okabe and Ito's, which colour-blind
readers can tell apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from visa_core.config import EvaluationConfig
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#666666"
GREEDY = "_greedy"
"""How the names of greedy rewrites' figures end."""
CURVES = (
    ("reward", "reward"),
    ("semantic", "semantic term"),
    ("consistency", "consistency"),
    ("cosine", "value cosine"),
)
"""Metrics of a run that the reward curve shows, where logged: key, name in the legend."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line cut short by a kill is left out. Raises ValueError
    naming file and line.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a line of JSON ({error.msg})") from error
    return rows


def reward_curve(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """Reward and its parts over steps, one panel a run: faint as logged, bold as a running mean
    over a twentieth of the run.

    Raises ValueError for a run that logged none of the metrics in CURVES.
    """
    figure, axes = figure_of(max(1, len(runs)), width=5.2, height=3.4)
    for axis, (name, rows) in zip(axes, runs.items(), strict=True):
        plain_axes(axis, f"{name}: reward during training", "step", "mean over the batch")
        drawn = [_curve(axis, rows, *curve, i) for i, curve in enumerate(CURVES)]
        if not any(drawn):
            raise ValueError(f"run {name!r} logged none of {', '.join(key for key, _ in CURVES)}")
        axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def _curve(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str, index: int) -> bool:
    points = [(row["step"], float(row[key])) for row in rows if key in row]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if not points:
        return False
    steps, values = zip(*points, strict=True)
    colour = COLOURS[index]
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, running_mean(values, max(1, len(values) // 20)), color=colour, label=label)
    return True


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the `window` values on either side, fewer at the ends."""
    means = []
    for i in range(len(values)):
        near = values[max(0, i - window) : i + window + 1]
        means.append(sum(near) / len(near))
    return means


def consistency_against_error(
    summaries: Mapping[str, Mapping[str, Any]],
    path: Path,
    config: EvaluationConfig | None = None,
) -> Path:
    """Mean consistency against mean value error, one mark a method: up and to the left is better.

    Hollow marks are the figures known by construction, where there are any; small ones are greedy
    (NAME_greedy looks like NAME otherwise); the shaded corner is joint success.
    """
    limits = config or EvaluationConfig()
    figure, (axis,) = figure_of(1, width=5.6, height=4.2)
    plain_axes(axis, "Facts kept against values reached", "value error (L2, mean)", "consistency")
    stems = list(dict.fromkeys(name.removesuffix(GREEDY) for name in summaries))
    for name, summary in summaries.items():
        i = stems.index(name.removesuffix(GREEDY))
        look = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5 if name.endswith(GREEDY) else 9,
            "clip_on": False,
            "zorder": 3,
        }
        x, y = summary["l2_mean"], summary["consistency_mean"]
        axis.plot(x, y, linestyle="", label=name, alpha=0.8, **look)
        if "true_l2_mean" in summary:
            true_x, true_y = summary["true_l2_mean"], summary["true_consistency_mean"]
            axis.plot([x, true_x], [y, true_y], color=look["color"], linewidth=0.6, alpha=0.6)
            axis.plot(true_x, true_y, linestyle="", markerfacecolor="white", **look)
    right = max(axis.get_xlim()[1], limits.l2_below * 1.1)
    axis.set_xlim(0, right)
    axis.set_ylim(0, 1.05)
    share = limits.l2_below / right
    axis.axhspan(
        limits.consistency_above, 1.05, xmax=share, color=COLOURS[2], alpha=0.08, linewidth=0
    )
    handles, labels = axis.get_legend_handles_labels()
    if any("true_l2_mean" in summary for summary in summaries.values()):
        hollow = Line2D([], [], linestyle="", marker="o", color=GREY, markerfacecolor="white")
        handles, labels = [*handles, hollow], [*labels, "known by construction"]
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right upper")
    return save_figure(figure, path)


def value_circles(
    before: torch.Tensor,
    target: torch.Tensor,
    after: torch.Tensor,
    path: Path,
    *,
    titles: Sequence[str] = (),
    space: ValueSpace = SCHWARTZ,
) -> Path:
    """Value vectors [N, K] before, wanted and after on the value circle, one panel an example.

    The centre is -1, the middle ring 0, the rim 1; neighbours on the circle are neighbours in the
    space's order.
    """
    count = len(target)
    figure, axes = figure_of(count, width=3.9, height=3.6, projection="polar")
    angles = [2 * math.pi * k / space.size for k in range(space.size)]
    closed = [*angles, angles[0]]
    looks = (
        (before, "before", GREY, ":"),
        (after, "after", COLOURS[0], "-"),
        (target, "target", COLOURS[1], "--"),
    )
    for i, axis in enumerate(axes):
        for vectors, label, colour, style in looks:
            radii = vectors[i].tolist()
            axis.plot(closed, [*radii, radii[0]], color=colour, linestyle=style, label=label)
        axis.fill(closed, [*after[i].tolist(), float(after[i, 0])], color=COLOURS[0], alpha=0.08)
        _value_circle(axis, space, angles)
        if i < len(titles):
            axis.set_title(titles[i], fontsize=8, pad=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return save_figure(figure, path)


def _value_circle(axis: Axes, space: ValueSpace, angles: Sequence[float]) -> None:
    """Rings and names of the value circle."""
    axis.plot([a / 50 * math.pi for a in range(101)], [0] * 101, color=GREY, linewidth=0.7)
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_ylim(-1, 1)
    axis.set_yticks([-1, -0.5, 0, 0.5, 1], ["-1", "", "0", "", "1"], fontsize=6, color=GREY)
    axis.set_xticks(angles, [d.title for d in space.dimensions], fontsize=6)
    hang_labels(axis, angles)
    axis.grid(color="#dddddd", linewidth=0.5)
    axis.spines["polar"].set_color("#bbbbbb")


def hang_labels(axis: Axes, angles: Sequence[float]) -> None:
    """Let the labels of a circle that begins at its top and goes round to the right stand clear of
    it: on the right they begin at it, on the left they end.
    """
    axis.tick_params(axis="x", pad=4)
    for text, angle in zip(axis.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        text.set_horizontalalignment("left" if side > 0.1 else "right" if side < -0.1 else "center")


def figure_of(
    panels: int, *, width: float, height: float, projection: str | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure without a display and its panels side by side; sizes in inches a panel."""
    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = [figure.add_subplot(1, panels, i + 1, projection=projection) for i in range(panels)]
    return figure, axes


def plain_axes(axis: Axes, title: str, x: str, y: str) -> None:
    """Title, labels, a light grid, and no frame above and to the right."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; returns where."""
    figure.savefig(path, dpi=150, format="png", bbox_inches="tight")
    return Path(path)
