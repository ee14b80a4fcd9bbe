"""The benchmark of MMLU: all sides right on a small model, and a wrong one gets no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import mmlu

SMALL = ["--questions", "3", "--prefix", "9", "--length", "6", "--hidden", "64", "--layers", "1"]
SMALL += ["--vocabulary", "50", "--budget", "40", "--turns", "1"]


def test_all_sides_are_right_and_timed(tmp_path: Path, capsys) -> None:
    assert mmlu.main([*SMALL, "--out", str(tmp_path / "mmlu.json")]) == 0
    forms = json.loads((tmp_path / "mmlu.json").read_text())["forms"]
    assert set(forms["letter"]["times_as_fast"]) == {"padded_question", "padded_choice"}
    assert set(forms["text"]["times_as_fast"]) == {"padded_choice"}
    assert max(forms["letter"]["largest_error"].values()) < 1e-4


def test_a_wrong_side_gets_no_time(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(mmlu, "question_rows", lambda *_: torch.zeros(3, mmlu.CHOICES))
    assert mmlu.main(SMALL) == 1
    said = capsys.readouterr()
    letter = json.loads(said.out)["forms"]["letter"]
    assert letter["wrong"] == ["padded_question"]
    assert "padded_question" not in letter["questions_per_second"]


def test_ratios_are_taken_within_a_turn() -> None:
    times = {"packed": [1.0, 10.0, 2.0], "padded_choice": [4.0, 30.0, 4.0]}
    record = mmlu.compared(times, {"packed": 0.0, "padded_choice": 0.0}, 8)
    assert record["times_as_fast"] == {"padded_choice": [3.0, 2.0, 4.0]}
    assert record["questions_per_second"] == {"packed": 4.0, "padded_choice": 2.0}
