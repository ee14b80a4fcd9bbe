"""Steps as stacked bars: `python -m bench.e2e.picture [FOLDER] [--out docs/e2e.png]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import machine
from bench.e2e.phases import PHASES
from bench.e2e.summary import is_ours

COLOURS = {
    "rollout": "#56B4E9",
    "score": "#F0E442",
    "logprobs": "#009E73",
    "loss_backward": "#E69F00",
    "optimizer": "#CC79A7",
    "sync": "#D55E00",
    "other": "#BBBBBB",
}
NAMES = {"loss_backward": "loss and backward"}
BAR_INCHES = 0.45

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Draw all cases of one results folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.e2e.picture", description=__doc__)
    results = Path(__file__).parents[1] / "results"
    parser.add_argument(
        "folder", type=Path, nargs="?", default=results / machine.folder_name("cpu")
    )
    parser.add_argument("--out", type=Path, default=Path("docs/e2e.png"))
    options = parser.parse_args(arguments)
    found = load(options.folder)
    if not found:
        parser.error(f"{options.folder} holds no results of python -m bench.e2e")
    draw(found, options.out)
    print(f"-> {options.out}")
    return 0


def load(folder: Path) -> list[Result]:
    """Results of a folder that have a measured provider, shortest prompts first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("e2e-*.json")]
    return sorted(
        (result for result in found if result.get("providers")),
        key=lambda result: (result["settings"]["prompt_tokens"], result["case"]),
    )


def draw(results: list[Result], path: Path) -> None:
    """One panel a case, one bar a provider."""
    heights = [len(result["providers"]) + 1 for result in results]
    figure = Figure(figsize=(8, BAR_INCHES * sum(heights) + 1.3), layout="constrained")
    panels = figure.subplots(
        len(results), 1, gridspec_kw={"height_ratios": heights}, squeeze=False
    )[:, 0]
    for result, axes in zip(results, panels, strict=True):
        panel(axes, result)
    panels[-1].set_xlabel("seconds of a step (medians)", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    last = results[-1]
    source = (
        f"{last['device']}, torch {version(last, 'torch')} with {last['settings']['threads']} "
        f"thread(s), TRL {version(last, 'trl')}, commit {machine.short(last['commit'])}"
    )
    figure.supxlabel(source, fontsize=6, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def panel(axes: Axes, result: Result) -> None:
    """The bars of one case, with seconds and how many times faster the fastest of ours is."""
    rows = result["providers"]
    starts = dict.fromkeys(rows, 0.0)
    for phase in PHASES:
        widths = [row["phases_s"][phase] for row in rows.values()]
        label = NAMES.get(phase, phase)
        axes.barh(
            range(len(rows)), widths, left=list(starts.values()), color=COLOURS[phase], label=label
        )
        starts = {name: starts[name] + w for name, w in zip(rows, widths, strict=True)}
    for place, (name, row) in enumerate(rows.items()):
        axes.annotate(
            f" {bar_label(name, row, result)}", (starts[name], place), va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(0, 1.25 * max(starts.values()))
    axes.set_title(title(result["settings"]), loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def bar_label(name: str, row: dict[str, Any], result: Result) -> str:
    """Seconds; a peer's as a multiple of the fastest of ours."""
    text = f"{row['step_s']:.2f} s"
    found = [r["step"][1] for pair, r in result["ratios"].items() if pair.startswith(f"{name} /")]
    return text if is_ours(name) or not found else f"{text}, x{max(found):.1f}"


def title(settings: dict[str, Any]) -> str:
    """What a step of the case is."""
    return (
        f"{settings['prompts']} prompts of {settings['prompt_tokens']} tokens, "
        f"{settings['group']} completions each of {settings['completion_tokens']}"
    )


def version(result: Result, package: str) -> str:
    """A package's version, or that it is absent."""
    return result["versions"].get(package) or "absent"


if __name__ == "__main__":
    sys.exit(main())
