"""The data card of a built data set: README.md with what the hub reads at its top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visa_core.data.schema import DataError
from visa_core.value_space import ValueSpace

REPORT = "report.json"


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished build. Raises DataError when there is none."""
    path = folder / REPORT
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; the folder holds no finished build, run visa data build"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None


def write_card(folder: Path, report: Mapping[str, Any], space: ValueSpace, pictures: bool) -> Path:
    """Write README.md of a build from its report; returns where."""
    path = folder / "README.md"
    path.write_text(card(report, space, pictures), encoding="utf-8")
    return path


def card(report: Mapping[str, Any], space: ValueSpace, pictures: bool = True) -> str:
    """The card's text."""
    parts = [_front(report), _summary(report), _stages(report), _numbers(report, space)]
    if pictures:
        names = ("levels", "shifts", "sizes")
        parts.append("\n".join(f"![{name}](figures/{name}.png)" for name in names))
    parts.append(_limits(report))
    return "\n\n".join(parts) + "\n"


def _front(report: Mapping[str, Any]) -> str:
    """YAML that tells `datasets` which files belong to which split."""
    lines = ["---", "configs:"]
    for name, counts in report["files"].items():
        lines += [f"- config_name: {name}"]
        lines += ["  default: true"] if name == "triplets" else []
        lines += ["  data_files:"]
        for split, rows in counts.items():
            if rows:
                lines += [f"  - split: {split}", f"    path: {name}/{split}.parquet"]
    return "\n".join([*lines, "---"])


def _summary(report: Mapping[str, Any]) -> str:
    files = report["files"]
    sizes = "; ".join(
        f"{name}: " + ", ".join(f"{split} {rows:,}" for split, rows in counts.items())
        for name, counts in files.items()
    )
    sources = ", ".join(f"`{text}`" for text in report["sources"])
    return (
        "# Rewriting triplets with value shifts\n\n"
        "Each triplet holds a query, a response, an instruction with the shift of values that it "
        "asks for, and a reference: another response to the same query that has the target's "
        "values. Vectors are on the five-point scale -1, -0.5, 0, 0.5, 1.\n\n"
        f"- built from: {sources}\n"
        f"- annotated by: `{report['annotator']}`\n"
        f"- rows: {sizes}\n\n"
        "```python\n"
        "from datasets import load_dataset\n\n"
        'triplets = load_dataset("FOLDER_OR_REPO", "triplets")\n'
        'responses = load_dataset("FOLDER_OR_REPO", "responses")\n'
        "```\n\n"
        "`triplets/*.jsonl` are records for `visa train sft|grpo|translator --data jsonl:PATH`, "
        "`responses/*.jsonl` for `visa train detector --data jsonl:PATH`."
    )


def _stages(report: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {count:,} |" for name, count in report["stages"].items()]
    return "\n".join(
        ["## What was kept, and why not", "", "| stage | count |", "| --- | ---: |"] + rows
    )


def _numbers(report: Mapping[str, Any], space: ValueSpace) -> str:
    s = report["statistics"]
    lines = [
        "## What the triplets are like",
        "",
        f"- unique target vectors: {s['unique_vectors']:,}; unique shifts: {s['unique_shifts']:,}",
        f"- of all edits of a value, {s['micro_edits']:.0%} are of 0.5 and {s['large_edits']:.0%} "
        "of 1.5 or more",
        f"- a value is left alone by {s['untouched_mean']:.0%} of the triplets on average",
        "",
        "| value | mean level | opposed | silent | promoted | left alone |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = max(1, s["triplets"])
    for dimension in space.dimensions:
        counts = [int(n) for n in s["levels"][dimension.name].values()]
        half = len(counts) // 2
        shares = (sum(counts[:half]) / total, counts[half] / total, sum(counts[half + 1 :]) / total)
        cells = " | ".join(f"{share:.1%}" for share in shares)
        lines.append(
            f"| {dimension.title} | {s['mean_level'][dimension.name]:+.2f} | {cells} | "
            f"{s['untouched'][dimension.name]:.1%} |"
        )
    return "\n".join(lines)


def _limits(report: Mapping[str, Any]) -> str:
    settings = json.dumps(report["settings"], sort_keys=True)
    notes = [
        "## Limits",
        "",
        "- References are other people's preferred or rejected answers, not rewrites: they may "
        "hold other facts than the source.",
        "- Levels are what the annotator read, not what the annotating person meant.",
    ]
    if report["annotator"].startswith("lexicon"):
        notes.append(
            "- **The lexicon annotator counts English words.** It serves to try the pipeline; for "
            "data to train on, annotate with a chat model."
        )
    return "\n".join([*notes, "", f"Settings: `{settings}`"])
