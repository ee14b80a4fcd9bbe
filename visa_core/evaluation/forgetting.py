"""Forgetting report: what a model lost of its old values when it learnt new ones.

N rows   K values
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from visa_core.evaluation import tables
from visa_core.training.checkpoint import CheckpointError, write_file

TITLES = {
    "before": "before, old values alone",
    "frozen": "frozen: new rows and words alone",
    "rehearsal": "rehearsal: everything, on new and old data",
    "plain": "plain fine-tune on the new data",
    "together": "trained on all values at once",
}


def errors(read_NK: torch.Tensor, truth_NK: torch.Tensor) -> dict[str, float]:
    """Mean squared error, and explained: 1 - MSE / (the labels' variance around each value's mean),
    1 for a perfect model and 0 for one that says the mean.
    """
    mse = float((read_NK - truth_NK).square().mean())
    variance = float((truth_NK - truth_NK.mean(0)).square().mean())
    return {"mse": mse, "explained": 1 - mse / variance if variance else float("nan")}


def loss_of_old(measured: Mapping[str, Any], way: str) -> float:
    """Relative rise of the old values' error on old rows."""
    return measured[way]["mse"] / measured["before"]["mse"] - 1


def chosen_way(measured: Mapping[str, Any], ways: Sequence[str], tolerance: float) -> str:
    """Of the ways within the tolerance the one that reads new values best; without any, the one
    that forgets least.
    """
    within = [way for way in ways if loss_of_old(measured, way) <= tolerance]
    if within:
        return min(within, key=lambda way: measured[way]["new"]["mse"])
    return min(ways, key=lambda way: measured[way]["mse"])


def write_forgetting(out: Path, record: Mapping[str, Any]) -> Path:
    """Write forgetting.json and .md; returns the first's path. Raises CheckpointError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "forgetting.md", markdown(record))
        write_file(out / "forgetting.json", tables.to_json(record))
    except OSError as error:
        raise CheckpointError(f"cannot write the report into {out}: {error}") from error
    return out / "forgetting.json"


def markdown(record: Mapping[str, Any]) -> str:
    """The report for people."""
    measured = record["measured"]
    together = measured.get("together")
    lines = [
        f"# New values of a {record['part']}, and what became of the old ones\n",
        f"Old: {', '.join(record['old'])}. New: {', '.join(record['new'])}. "
        f"{record['rows']['new']} rows teach the new values, {record['rows']['rehearsal']} rows "
        "rehearse the old ones.\n",
        "| way | old values: MSE | change | old among new: MSE | new values: MSE | explained | "
        "of all at once |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, entry in measured.items():
        cells = [f"{entry['mse']:.5f}"]
        cells.append("-" if way == "before" else f"{100 * loss_of_old(measured, way):+.1f} %")
        if way == "before":
            cells += ["-"] * 4
        else:
            new = entry["new"]
            cells += [f"{entry['among_new']['mse']:.5f}", f"{new['mse']:.5f}"]
            cells.append(f"{new['explained']:.3f}")
            cells.append(
                f"{100 * new['explained'] / together['new']['explained']:.0f} %"
                if together
                else "-"
            )
        lines.append(f"| {TITLES[way]} | " + " | ".join(cells) + " |")
    lines.append(
        f"\nChosen: {record['chosen']}. The choice is made on the rows that are reported, so its "
        "own figures are a little flattered.\n"
    )
    return "\n".join(lines)
