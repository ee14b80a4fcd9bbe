"""Forgetting report of a rewriter: old and new values before and after, beside copying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visa_core.evaluation import tables
from visa_core.training.checkpoint import CheckpointError, write_file

TITLES = {
    "copy": "copy (the source as it is)",
    "before": "before",
    "rehearsal": "rehearsal: all weights, new and old tasks",
    "lora": "adapter and new words, new and old tasks",
    "plain": "plain fine-tune on new tasks",
}


def write_report(out: Path, record: Mapping[str, Any]) -> Path:
    """Write forgetting.json and .md; returns the first's path. Raises CheckpointError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "forgetting.md", markdown(record))
        write_file(out / "forgetting.json", tables.to_json(record))
    except OSError as error:
        raise CheckpointError(f"cannot write the report into {out}: {error}") from error
    return out / "forgetting.json"


def chosen_way(
    measured: Mapping[str, Mapping[str, Any]], ways: Sequence[str], tolerance: float
) -> str:
    """Of the ways that keep the old values' joint success within the tolerance the one with the
    best on new values; without any, the one that forgets least.
    """
    old, new = measured["old"], measured["new"]
    least = (1 - tolerance) * old["before"]["jsr"]
    within = [way for way in ways if old[way]["jsr"] >= least]
    if within:
        return max(within, key=lambda way: new[way]["jsr"])
    return max(ways, key=lambda way: old[way]["jsr"])


def analyzer_warning(measured: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence when the fact analyzer does not read new texts: a copy keeps every fact, so its
    consistency must be about as high on new tasks as on old ones.
    """
    old, new = (measured[kind]["copy"]["consistency_mean"] for kind in ("old", "new"))
    if new >= 0.9 * old:
        return None
    return (
        f"the fact analyzer gives copies of the new sources a consistency of {new:.2f}, and of the "
        f"old ones {old:.2f}: it cannot read the new texts, and figures of new values below say "
        "more of it than of the rewriter. Train it on texts with the new values (visa train nli)."
    )


def markdown(record: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# New values of a rewriter, and what became of the old ones\n",
        f"Old: {', '.join(record['old'])}. New: {', '.join(record['new'])}. By the learned "
        "detector and fact analyzer. Joint success: distance to the target below 0.8 and "
        "consistency above 0.3.\n",
    ]
    if warning := analyzer_warning(record["measured"]):
        lines.append(f"**Warning**: {warning}\n")
    for kind, rows in record["measured"].items():
        before = rows.get("before")
        lines += [
            f"## Tasks of {kind} values, n = {record['tasks'][kind]}\n",
            "| way | joint success | change | consistency | fwd | bwd |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, row in rows.items():
            change = "-"
            if before and before["jsr"] and name not in ("before", "copy"):
                change = f"{100 * (row['jsr'] / before['jsr'] - 1):+.1f} %"
            figures = " | ".join(
                f"{row[f'{key}_mean']:.3f}" for key in ("consistency", "fwd", "bwd")
            )
            lines.append(f"| {TITLES[name]} | {row['jsr']:.3f} | {change} | {figures} |")
        lines.append("")
    lines.append(
        f"Chosen: {record['chosen']}. The choice is made on the tasks that are reported, so its "
        "own figures are a little flattered.\n"
    )
    return "\n".join(lines)
