"""values.json, values.md and values.png of one model's values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visa_core.evaluation import tables
from visa_core.evaluation.intervals import shown
from visa_core.evaluation.value_plots import dimension_bars
from visa_core.training.checkpoint import CheckpointError, write_file

NAME = "values.json"


def write_values(out: Path, record: Mapping[str, Any]) -> Path:
    """Write the three files into `out`; returns the path of values.json.

    Raises CheckpointError when they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        dimension_bars({record["model"]["name"]: record["dimensions"]}, out / "values.png")
        write_file(out / "values.md", markdown(record))
        write_file(out / NAME, tables.to_json(record))
    except OSError as error:
        raise CheckpointError(f"cannot write the report into {out}: {error}") from error
    return out / NAME


def markdown(record: Mapping[str, Any]) -> str:
    """The report for people."""
    counts, protocol = record["counts"], record["protocol"]
    rows = "".join(
        f"| {entry['title']} | {entry['high']} | {shown(entry)} | {entry['answers']} |\n"
        for entry in record["dimensions"].values()
    )
    return "\n".join(
        [
            f"# Values of {record['model']['name']}\n",
            f"Win rate: how often an answer was judged nearer to the named end of a scale than the "
            f"question's default answer; 0.5 is as near. 95 % intervals (Wilson), n = questions. "
            f"{protocol['answers']} answers a question at temperature {protocol['temperature']}, "
            f"judged by {record['judge']['name']} at {protocol['judge_temperature']}, "
            f"{_order(protocol['order'])}.\n",
            f"Questions: {record['about']}\n",
            "| dimension | win is nearer to | win rate | answers |\n| --- | --- | --- | ---: |\n"
            + rows,
            "## The judge\n",
            _bias(record["position_bias"]),
            f"- {counts['unparsable_verdicts']} of {counts['verdicts']} verdicts could not be "
            "parsed and count for nothing\n"
            f"- {counts['cut_answers']} of {counts['answers']} answers were cut at their limit, "
            f"{counts['empty_answers']} were empty and not judged\n" + _missing(counts["missing"]),
        ]
    )


def _order(order: str) -> str:
    if order == "swap":
        return "in both orders"
    return "always as Response 1, so that a judge's liking for a place is in the figures"


def _bias(bias: Mapping[str, Any]) -> str:
    if not bias["pairs"]:
        return "- position bias: not measured, because nothing was judged in both orders"
    return (
        f"- Response 1 was chosen in {shown(bias['first_chosen'])} pairs (0.5 without bias)\n"
        f"- the choice moved with the order in {shown(bias['changed'])} pairs: "
        f"{bias['always_first']} times Response 1 both times, {bias['always_second']} times "
        "Response 2\n"
        f"- judged first alone, as published, the tested model's win rate is "
        f"{shown(bias['without_swap'])} pairs, {bias['bias']:+.3f} against both orders"
    )


def _missing(missing: Mapping[str, int]) -> str:
    lines = [f"- {count} never came: {reason}\n" for reason, count in missing.items()]
    return "".join(lines) + ("- start again to ask for what is missing\n" if lines else "")
