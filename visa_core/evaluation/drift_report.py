"""drift.json, drift.md and pictures of value drift."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visa_core.evaluation import tables
from visa_core.evaluation.value_plots import (
    VALUES,
    WIN_RATES,
    dimension_bars,
    dimension_radar,
    drift_bars,
)
from visa_core.training.checkpoint import CheckpointError, write_file

TITLES = {
    "judge": "Judged: win rate against default answers, 0 to 1",
    "detector": "Read by the detector: mean value of the answers, -1 to 1",
}


def write_drift(out: Path, record: dict[str, Any]) -> Path:
    """Write all files into `out`; returns the path of drift.json. Raises CheckpointError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        record["pictures"] = [
            path.name for reader in record["readers"] for path in pictures(out, reader, record)
        ]
        write_file(out / "drift.md", markdown(record))
        write_file(out / "drift.json", tables.to_json(record))
    except OSError as error:
        raise CheckpointError(f"cannot write the report into {out}: {error}") from error
    return out / "drift.json"


def pictures(out: Path, reader: str, record: Mapping[str, Any]) -> list[Path]:
    """Radar and bars of the profiles, bars of the changes."""
    seen = record["readers"][reader]
    scale, label = (
        (WIN_RATES, "win rate against default answers")
        if reader == "judge"
        else (VALUES, "value read by the detector")
    )
    changes = {name: entry["changes"] for name, entry in seen["drift"].items()}
    return [
        dimension_radar(seen["profiles"], out / f"{reader}-radar.png", scale),
        dimension_bars(seen["profiles"], out / f"{reader}-bars.png", scale, label),
        drift_bars(changes, out / f"{reader}-drift.png"),
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """The report for people."""
    parts = [
        f"# Value drift from {record['base']}\n",
        record["definition"] + "\n",
        f"Intervals: 95 %, bootstrap over questions. {_asked(record)}\n",
        f"Questions: {record['about']}\n",
    ]
    for reader, seen in record["readers"].items():
        parts += [f"## {TITLES[reader]}\n", _drifts(seen["drift"]), _changes(record, seen)]
    parts += ["## What was asked\n", _counts(record["models"])]
    return "\n".join(parts)


def _asked(record: Mapping[str, Any]) -> str:
    protocol = record["protocol"]
    text = f"{protocol['answers']} answers a question at temperature {protocol['temperature']}"
    if record["judge"]:
        order = "in both orders" if protocol["order"] == "swap" else "tested model first"
        text += f", judged by {record['judge']['model']} {order}"
    return text + "."


def _drifts(drifts: Mapping[str, Any]) -> str:
    lines = "".join(
        f"| {name} | {d['drift']:.4f} | {d['by_chance']:.4f} | {d['p']:.4f} | {d['questions']} |\n"
        for name, d in drifts.items()
    )
    head = "| model | value drift | by chance | p | questions |"
    return f"{head}\n| --- | ---: | ---: | ---: | ---: |\n{lines}"


def _changes(record: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """A row a dimension: the base's number and each model's change from it."""
    tuned = list(seen["drift"])
    lines = [
        f"| dimension | {record['base']} | " + " | ".join(f"change: {n}" for n in tuned) + " |",
        "| --- | ---: |" + " ---: |" * len(tuned),
    ]
    for name, entry in seen["profiles"][record["base"]].items():
        title = entry["title"] + (f" (high: {entry['high']})" if entry["high"] else "")
        cells = [_signed(seen["drift"][n]["changes"][name]) for n in tuned]
        mean = "-" if entry["mean"] is None else f"{entry['mean']:.3f}"
        lines.append(f"| {title} | {mean} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _signed(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return "-"
    low, high = entry["interval"]
    return f"{entry['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _counts(models: Mapping[str, Any]) -> str:
    lines = []
    for name, told in models.items():
        line = (
            f"- {name} ({told['model']}): {told['answers']} answers, {told['cut_answers']} cut at "
            f"their limit, {told['empty_answers']} empty"
        )
        if "unparsable_verdicts" in told:
            line += f"; {told['unparsable_verdicts']} verdicts could not be parsed"
        if told["missing"]:
            never = ", ".join(f"{count} ({why})" for why, count in told["missing"].items())
            line += f"; never came: {never}, start again to ask for them"
        lines.append(line + "\n")
    return "".join(lines)
