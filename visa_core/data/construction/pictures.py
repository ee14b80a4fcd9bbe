"""Pictures of a data set: levels by value, shifts by value as violins, edits by size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visa_core.data.construction.statistics import LEVELS, SHIFTS
from visa_core.evaluation.plots import COLOURS, GREY, figure_of, plain_axes, save_figure
from visa_core.value_space import ValueSpace

LEVEL_COLOURS = ("#8c2d04", "#fdae6b", "#dddddd", "#9ecae1", "#08519c")
WIDTH = 0.18
"""Standard deviation of the bell that each count becomes in a violin, below half a step."""


def draw_all(record: Mapping[str, Any], space: ValueSpace, folder: Path) -> list[Path]:
    """All pictures of a statistics record, as PNG files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        draw_levels(record, space, folder / "levels.png"),
        draw_shifts(record, space, folder / "shifts.png"),
        draw_sizes(record, space, folder / "sizes.png"),
    ]


def draw_levels(record: Mapping[str, Any], space: ValueSpace, path: Path) -> Path:
    """Share of each level of the target vectors, a stacked bar a value."""
    figure, (axis,) = figure_of(1, width=7.0, height=3.8)
    plain_axes(axis, "Levels of the target vectors", "share of triplets", "")
    counts = _counts(record["levels"], space)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    left = np.zeros(space.size)
    for i, level in enumerate(LEVELS):
        label = f"{level:+g}" if level else "0"
        axis.barh(range(space.size), shares[:, i], left=left, color=LEVEL_COLOURS[i], label=label)
        left += shares[:, i]
    _value_axis(axis, space)
    axis.set_xlim(0, 1)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(LEVELS))
    return save_figure(figure, path)


def draw_shifts(record: Mapping[str, Any], space: ValueSpace, path: Path) -> Path:
    """Distribution of the shift by value as violins; a wide middle is a value left alone."""
    figure, (axis,) = figure_of(1, width=8.0, height=4.2)
    plain_axes(axis, "Shifts by value", "", "shift")
    grid = np.linspace(-2.3, 2.3, 231)
    bells = np.exp(-0.5 * ((grid[:, None] - np.array(SHIFTS)[None]) / WIDTH) ** 2)
    counts = _counts(record["shifts"], space)
    violins = []
    for row in counts:
        values = np.repeat(SHIFTS, row) if row.sum() else np.zeros(1)
        density = bells @ row if row.sum() else np.zeros_like(grid)
        violins.append(
            {
                "coords": grid,
                "vals": density,
                "mean": float(values.mean()),
                "median": float(np.median(values)),
                "min": float(values.min()),
                "max": float(values.max()),
            }
        )
    parts = axis.violin(
        violins, positions=range(space.size), widths=0.9, showmeans=True, showextrema=False
    )
    for body in parts["bodies"]:
        body.set(facecolor=COLOURS[0], alpha=0.6)
    parts["cmeans"].set(color=COLOURS[1])
    axis.set_xticks(range(space.size), [d.title for d in space.dimensions], rotation=30, ha="right")
    axis.set_yticks(SHIFTS)
    return save_figure(figure, path)


def draw_sizes(record: Mapping[str, Any], space: ValueSpace, path: Path) -> Path:
    """Edits by size, and how many triplets leave each value alone."""
    figure, (left, right) = figure_of(2, width=4.6, height=3.6)
    plain_axes(left, "Edits by size", "|shift| of a touched value", "share of edits")
    sizes = {float(size): n for size, n in record["edits_by_size"].items()}
    total = max(1, sum(sizes.values()))
    shares = [n / total for n in sizes.values()]
    left.bar(list(sizes), shares, width=0.4, color=COLOURS[0])
    left.set_xticks(list(sizes))
    plain_axes(right, "Values left alone", "share of triplets", "")
    right.barh(range(space.size), list(record["untouched"].values()), color=COLOURS[2])
    right.axvline(record["untouched_mean"], color=GREY, linestyle="--", linewidth=1)
    right.set_xlim(0, 1)
    _value_axis(right, space)
    return save_figure(figure, path)


def _counts(table: Mapping[str, Mapping[str, int]], space: ValueSpace) -> np.ndarray:
    return np.array([list(table[name].values()) for name in space.names], dtype=np.int64)


def _value_axis(axis: Any, space: ValueSpace) -> None:
    axis.set_yticks(range(space.size), [d.title for d in space.dimensions], fontsize=8)
    axis.invert_yaxis()
