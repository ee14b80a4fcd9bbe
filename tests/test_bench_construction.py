"""The bench of data construction: what its file holds, both sides alike, a wrong side refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bench import construction
from bench.alignment_file import COLUMNS, Rates, write_alignment
from tests.preferences import read
from tests.tiny import write_lines


def test_the_file_holds_what_it_says(tmp_path: Path) -> None:
    """The reader finds as many comparisons as were written, whatever stands around them."""
    often = Rates(stray=0.3, repeated=0.3, equal_to_chosen=0.3, gap=0.2, further_turn=0.8)
    path = tmp_path / "t.csv"
    made = write_alignment(path, 400, seed=1, rates=often)
    found, intake = read(f"ca:{path}")
    assert len(found) == made.comparisons >= 400
    assert intake.counts["rows"] == made.counts["rows"] and not intake.counts["bad rows"]
    assert min(intake.counts[name] for name in (
        "turns after a gap", "candidates equal to the chosen one", "candidates that repeat another"
    )) > 10  # fmt: skip
    assert not any("<|" in text for c in found for text in (c.prompt, c.chosen, c.rejected))
    with path.open(encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS and len(COLUMNS) == 41


def test_both_sides_make_the_same_triplets(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "result.json"
    sizes = ["--comparisons", "0", "--plain", "300", "--turns", "1"]
    dialogue = {"dialogue": "Human: Is it safe?\nBob: It is safe.", "value_types": ["security: +1"]}
    fulcra = write_lines(tmp_path / "fulcra.jsonl", [dialogue])
    arguments = [*sizes, "--fulcra", str(fulcra), "--out", str(out)]
    assert construction.main(arguments) == 0
    result = json.loads(out.read_text())
    runs = {side: turns[0] for side, turns in result["ratio"]["runs"].items()}
    assert runs["ours"]["triplets"] == runs["plain"]["triplets"] > 300
    assert runs["ours"]["comparisons"] == runs["plain"]["comparisons"] >= 300
    assert len(result["ratio"]["times_as_fast"]) == 3 and runs["ours"]["peak_gib"] > 0.1
    assert result["lexicon"]["f1"] == result["lexicon"]["recall"] == 1.0


def test_limits_and_a_wrong_side(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def measured(side: str, table: Path, out: Path) -> dict[str, Any]:
        triplets = 100 if side == "ours" else 102
        return {"seconds": 601.0, "peak_gib": 1.0, "comparisons": 9, "triplets": triplets}

    monkeypatch.setattr(construction, "in_process", measured)
    assert construction.main(["--comparisons", "5", "--plain", "5", "--turns", "1"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] == {"wrong": {"plain": 102, "ours": 100}}
    assert result["whole"]["within_limits"] is False
