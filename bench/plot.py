"""Draw results: `python -m bench.plot FOLDER [--out docs]` writes two pictures.

speed.png has each provider's speed as a multiple of the baseline's, with the spread over rounds;
floor.png has how much of the device's limit each reaches. Both sides carry their versions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import table

OURS_COLOUR, TORCH_COLOUR, PEER_COLOUR = "#0072B2", "#999999", "#D55E00"
BAR_INCHES = 0.26

Row = dict[str, Any]
Group = tuple[str, list[tuple[str, Row]]]


def main(arguments: list[str] | None = None) -> int:
    """Draw both pictures of one results folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="bench/results/DEVICE")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: FOLDER)")
    parser.add_argument("--all", action="store_true", help="every case, not the headline ones")
    options = parser.parse_args(arguments)
    results = table.load(options.folder)
    if not results:
        parser.error(f"{options.folder} holds no results")
    out = options.out or options.folder
    out.mkdir(parents=True, exist_ok=True)
    groups = grouped(results, options.all)
    source = table.sources(results)[0]
    races = [(name, rows) for name, rows in groups if len(rows) > 1]
    draw(out / "speed.png", races, "times faster than the baseline", speed_bar, source)
    draw(out / "floor.png", groups, "share of the device's limit", floor_bar, source)
    print(f"-> {out / 'speed.png'}, {out / 'floor.png'}")
    return 0


def grouped(results: list[dict[str, Any]], every: bool) -> list[Group]:
    """Timed rows by op and case, each with the provider's name and version."""
    groups: dict[str, list[tuple[str, Row]]] = {}
    for result, row in table.shown_rows(results, every):
        if "p50_ms" in row:
            title = f"{row['op']}\n{row['case']}"
            label = table.named(row["provider"], row, result)
            groups.setdefault(title, []).append((label, row))
    return list(groups.items())


def draw(
    path: Path,
    groups: list[Group],
    title: str,
    bar: Callable[[Axes, float, Row], float],
    source: str,
) -> None:
    """One panel of horizontal bars per case, as high as it has bars."""
    heights = [len(rows) + 1 for _, rows in groups]
    figure = Figure(figsize=(8, BAR_INCHES * sum(heights) + 1), layout="constrained")
    panels = figure.subplots(
        len(groups), 1, gridspec_kw={"height_ratios": heights}, squeeze=False
    )
    for (name, rows), axes in zip(groups, panels[:, 0], strict=True):
        for place, (_, row) in enumerate(rows):
            end = bar(axes, place, row)
            axes.annotate(
                f" {bar_label(title, row)}", (end, place), va="center", fontsize=7
            )
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
        axes.invert_yaxis()
        axes.set_title(name.replace("\n", "  "), loc="left", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(source, fontsize=5, color="#555555")
    figure.savefig(path, dpi=150)


def speed_bar(axes: Axes, place: float, row: Row) -> float:
    """Median ratio within rounds, with its 20th and 80th percentile; where the bar ends."""
    low, middle, high = row.get("times_faster", (1.0, 1.0, 1.0))
    axes.barh(place, middle, color=colour(row), xerr=[[middle - low], [high - middle]], ecolor="k")
    return high


def floor_bar(axes: Axes, place: float, row: Row) -> float:
    """Share of the floor; a line marks the limit."""
    share = table.best_floor(row)
    axes.barh(place, share, color=colour(row))
    axes.axvline(1.0, color="k", linewidth=0.6)
    return share


def bar_label(title: str, row: Row) -> str:
    """What stands at the end of a bar."""
    if title.startswith("share"):
        return f"{table.best_floor(row):.0%}"
    return f"x{row.get('times_faster', (1, 1, 1))[1]:.3g}   {row['p50_ms']:.3g} ms"


def colour(row: Row) -> str:
    """Ours, plain torch, or a peer."""
    if table.is_ours(row["provider"]):
        return OURS_COLOUR
    return PEER_COLOUR if row.get("package", "torch") != "torch" else TORCH_COLOUR


if __name__ == "__main__":
    sys.exit(main())
