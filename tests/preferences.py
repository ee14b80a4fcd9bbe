"""Preferences for tests: rows in Community Alignment's schema, written in each of its forms."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.alignment_file import COLUMNS, TURNS, WORDS
from visa_core.data.construction.comparison import Comparison, Intake
from visa_core.data.construction.readers import read_comparisons
from visa_core.values import SCHWARTZ

Turn = tuple[str, Sequence[str], str, str]
"""Prompt, up to four responses, preferred letter, feedback."""


def ca_row(name: str, *turns: Turn | None, language: str = "en", **more: str) -> dict[str, str]:
    """A row; None is a turn that was left out."""
    row = dict.fromkeys(COLUMNS, "") | {"conversation_id": name, "assigned_lang": language}
    for turn, content in zip(TURNS, turns, strict=False):
        if content is None:
            continue
        prompt, responses, preferred, feedback = content
        row[f"{turn}_turn_prompt"] = prompt
        for letter, text in zip("abcd", responses, strict=False):
            row[f"{turn}_turn_response_{letter}"] = text
        row[f"{turn}_turn_preferred_response"] = f"response_{preferred}" if preferred else ""
        row[f"{turn}_turn_feedback"] = feedback
    return row | more


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """The rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows as Parquet, empty cells as nulls."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.field(name, pa.string()) for name in rows[0]]
    cells = [{name: text or None for name, text in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(cells, schema=pa.schema(columns)), path)
    return path


def write_dataset(path: Path, rows: Sequence[dict[str, Any]], split: str = "") -> Path:
    """The rows as a folder that `datasets` saved; with a split as a dictionary of splits."""
    import datasets

    cells = [{name: text or None for name, text in row.items()} for row in rows]
    table = datasets.Dataset.from_list(cells)
    (datasets.DatasetDict({split: table}) if split else table).save_to_disk(str(path))
    return path


def read(*specs: str, languages: Sequence[str] = ()) -> tuple[list[Comparison], Intake]:
    """All comparisons, and the account of what was set aside."""
    intake = Intake()
    return list(read_comparisons(specs, intake, languages)), intake


def marked(text: str, **levels: float) -> str:
    """A response that tells its own values, such as "Fish. <security=0.5>"."""
    marks = "".join(f" <{name.replace('_', '-')}={level:g}>" for name, level in levels.items())
    return text + marks


def levels_of(text: str) -> dict[str, float]:
    """All ten values of a marked response."""
    told = dict(re.findall(r"<([a-z-]+)=([-0-9.]+)>", text))
    return {name: float(told.get(name, 0)) for name in SCHWARTZ.names}


def reading(body: dict[str, Any]) -> str:
    """A chat model's right answer about two marked responses."""
    asked = body["messages"][1]["content"]
    _, _, rest = asked.partition("Response A:\n")
    first, _, rest = rest.partition("\n\nResponse B:\n")
    second, _, _ = rest.partition("\n\nPreferred:")
    return json.dumps({"reasoning": "marks", "A": levels_of(first), "B": levels_of(second)})


def marked_pairs(n: int) -> list[dict[str, str]]:
    """JSON lines of n comparisons whose responses tell their values, no text twice."""
    names, steps = SCHWARTZ.names, (-1, -0.5, 0, 0.5, 1)
    rows = []
    for i in range(n):
        one = {names[i % 10]: steps[i % 5], names[(i // 3) % 10]: 0.5}
        two = {names[(i + 4) % 10]: steps[(i // 5) % 5], names[i % 10]: steps[(i + 2) % 5]}
        rows.append(
            {
                "prompt": f"question {i} about {WORDS[i % len(WORDS)]}",
                "chosen": marked(f"answer {i} is {WORDS[i % len(WORDS)]}", **one),
                "rejected": marked(f"reply {i} says {WORDS[(i + 1) % len(WORDS)]}", **two),
                "explanation": f"reason {i}" if i % 3 else "",
            }
        )
    return rows
