"""Pictures of a search: the path of every value, and drift against capability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visa_core.evaluation.plots import (
    COLOURS,
    GREY,
    MARKERS,
    figure_of,
    plain_axes,
    save_figure,
)

LABELS = (("sft", "SFT"), ("visa", "VISA"), ("base", "base"))


def path_picture(
    searches: Sequence[Sequence[Mapping[str, Any]]], values: Sequence[str], path: Path
) -> Path:
    """Mean and spread of each value over the iterations, a panel a value, a colour a seed."""
    columns = min(5, len(values))
    lines = -(-len(values) // columns)
    figure = Figure(figsize=(2.5 * columns, 1.9 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axis in axes[len(values) :]:
        axis.axis("off")
    for k, (axis, name) in enumerate(zip(axes, values, strict=False)):
        plain_axes(axis, name, "", "")
        axis.axhline(0, color=GREY, linewidth=0.6)
        for seed, iterations in enumerate(searches):
            steps = [entry["iteration"] + 1 for entry in iterations]
            mean = [entry["answer"][k] for entry in iterations]
            wide = [entry["spread"][k] for entry in iterations]
            colour = COLOURS[seed % len(COLOURS)]
            axis.plot(steps, mean, color=colour, linewidth=1.2, label=f"seed {seed}")
            axis.fill_between(
                steps,
                [m - w for m, w in zip(mean, wide, strict=True)],
                [m + w for m, w in zip(mean, wide, strict=True)],
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        axis.set_ylim(-1.05, 1.05)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.supxlabel("iteration", fontsize=9)
    figure.supylabel("mean and spread", fontsize=9)
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper right", ncols=5)
    return save_figure(figure, path)


def pareto_picture(record: Mapping[str, Any], path: Path) -> Path:
    """All candidates by drift and capability, lighter the earlier, their front, and the table's
    arms.
    """
    figure, (axis,) = figure_of(1, width=6.2, height=4.4)
    plain_axes(axis, "All candidates", "value drift", "capability")
    for iterations in record["searches"]:
        for entry in iterations:
            axis.scatter(
                [r["drift"] for r in entry["records"]],
                [r["capability"] for r in entry["records"]],
                s=12,
                color=COLOURS[0],
                alpha=0.15 + 0.75 * (entry["iteration"] + 1) / len(iterations),
                linewidths=0,
            )
    front = record["pareto"]
    axis.step(
        [p["drift"] for p in front],
        [p["capability"] for p in front],
        where="post",
        color=COLOURS[2],
        marker=".",
        linewidth=1.2,
        label="front (search's questions)",
    )
    for i, (arm, label) in enumerate(LABELS):
        entry = record["table"][arm]
        axis.errorbar(
            entry["drift"]["mean"],
            entry["capability"]["mean"],
            xerr=entry["drift"]["std"],
            yerr=entry["capability"]["std"],
            color=COLOURS[(1, 3, 6)[i]],
            marker=MARKERS[i + 1],
            markersize=7,
            linestyle="",
            linewidth=1,
            label=f"{label} (table's questions)",
        )
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
