"""Preferences for tests: rows in Community Alignment's schema, written in each of its forms."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.alignment_file import COLUMNS, TURNS
from visa_core.data.construction.comparison import Comparison, Intake
from visa_core.data.construction.readers import read_comparisons

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
