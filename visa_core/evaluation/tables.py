"""Figures of methods as JSON and as Markdown tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Summaries = Mapping[str, Mapping[str, Any]]

LEARNED: tuple[tuple[str, str], ...] = (
    ("n", "n"),
    ("consistency", "consistency"),
    ("fwd", "fwd"),
    ("bwd", "bwd"),
    ("l2", "value L2"),
    ("cos", "value cosine"),
    ("jsr", "joint success"),
    ("mad", "MAD"),
    ("length_mean", "words"),
)
"""Columns of the main table: key (or the stem of key_mean and key_std), title."""

TRUE: tuple[tuple[str, str], ...] = (
    ("true_consistency", "consistency"),
    ("true_fwd", "fwd"),
    ("true_bwd", "bwd"),
    ("true_l2", "value L2"),
    ("true_cos", "value cosine"),
    ("true_jsr", "joint success"),
    ("true_facts_kept", "facts kept"),
    ("true_facts_added", "facts added"),
    ("true_repeated_share", "repeats"),
    ("true_unparsable", "unparsable"),
)
"""Columns of the table of what is known by construction."""


def to_json(record: Any) -> str:
    """JSON of figures; NaN and infinity become null, so that any reader accepts it."""
    return json.dumps(_plain(record), indent=1, allow_nan=False, default=str) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_markdown(summaries: Summaries, columns: Sequence[tuple[str, str]] = LEARNED) -> str:
    """One row per method; mean and standard deviation as "0.812 ± 0.104"; "-" where a method has no
    such figure.
    """
    header = ["method", *(title for _, title in columns)]
    rows = [
        [name, *(_cell(summary, key) for key, _ in columns)] for name, summary in summaries.items()
    ]
    return markdown_table(header, rows)


def dimension_markdown(summaries: Summaries, names: Sequence[str]) -> str:
    """Mean absolute error of every value, and their mean (MAD), one row per method."""
    rows = []
    for name, summary in summaries.items():
        errors = summary["mad_per_dimension"]
        rows.append([name, *(f"{errors[value]:.3f}" for value in names), f"{summary['mad']:.3f}"])
    return markdown_table(["method", *names, "MAD"], rows)


def _cell(summary: Mapping[str, Any], key: str) -> str:
    if f"{key}_mean" in summary:
        return f"{summary[f'{key}_mean']:.3f} ± {summary[f'{key}_std']:.3f}"
    value = summary.get(key)
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if key.startswith("length") else f"{value:.3f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
