"""The bench of scoring: real sides on a tiny classifier, and no ratio for other decisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import scoring

TINY = ["--pairs", "6", "--turns", "1", "--threads", "1", "--layers", "1", "--hidden", "24"]
TINY += ["--heads", "2"]


@pytest.mark.slow
def test_ours_decides_as_the_pipeline_does(tmp_path: Path) -> None:
    arguments = [*TINY, "--side", "ours", "ours-bf16", "pipeline", "--out", str(tmp_path)]
    assert scoring.main(arguments) == 0
    result = json.loads((tmp_path / "scoring.json").read_text())
    summary = result["summary"]
    assert summary["same_decisions"] == {"ours-bf16": True, "pipeline": True}
    assert summary["read_again"]["ours"] == 0
    assert summary["largest_difference"]["pipeline"] < 1e-4
    assert sum(summary["decisions_of_each_label"]) == 6
    assert summary["tokens"] == sum(16 + 384 * i // 5 for i in range(6))
    (ours,), (theirs,) = result["seconds"]["ours"], result["seconds"]["pipeline"]
    assert summary["times_faster_than"]["pipeline"] == [round(theirs / ours, 2)] * 3


def test_another_decision_gets_no_ratio() -> None:
    """CrossEncoder's second row has another largest score; it took twice as long in each turn."""
    scores = {
        "ours": np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]),
        "cross_encoder": np.array([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]]),
        "pipeline": np.array([[0.9, 0.1, -1.0], [0.0, 1.0, -1.0]]),
    }
    seconds = {"ours": [1.0, 3.0], "cross_encoder": [2.0, 6.0], "pipeline": [4.0, 9.0]}
    cpu = {"ours": [1.0, 1.0], "cross_encoder": [2.0, 2.0], "pipeline": [5.0, 5.0]}
    options = scoring.parse(["--pairs", "2"])
    summary = scoring.compared(seconds, scores, [16, 400], options, cpu)["summary"]
    assert summary["same_decisions"] == {"cross_encoder": False, "pipeline": True}
    assert summary["times_faster_than"] == {"pipeline": [3.0, 3.5, 4.0]}
    assert summary["times_faster_than_cpu"] == {"pipeline": [5.0, 5.0, 5.0]}
    assert summary["largest_difference"]["pipeline"] == pytest.approx(0.1)
    assert summary["pairs_per_second"]["ours"] == 1.0


def test_both_sides_in_bfloat16() -> None:
    """Ours has ratios of its own while it decides as float32 does; CrossEncoder's are counted."""
    exact = np.array([[1.0, 0.0, -1.0], [0.0, 0.1, -1.0]])
    other = np.array([[1.0, 0.0, -1.0], [0.1, 0.0, -1.0]])
    scores = {"cross_encoder": exact, "cross_encoder-bf16": other, "ours": exact}
    options = scoring.parse(["--pairs", "2"])
    seconds = {"cross_encoder": [6.0], "cross_encoder-bf16": [4.0], "ours": [3.0]}
    seconds["ours-bf16"] = [2.0]

    def summary(mine: np.ndarray) -> dict:
        found = scores | {"ours-bf16": mine}
        return scoring.compared(seconds, found, [16, 400], options, seconds)["summary"]

    same = summary(exact)
    assert same["decisions_that_differ"] == {
        "cross_encoder": 0, "cross_encoder-bf16": 1, "ours-bf16": 0
    }  # fmt: skip
    assert same["times_faster_than"] == {"cross_encoder": [2.0] * 3}
    assert same["bf16_times_faster_than_cpu"] == {"cross_encoder": [3.0] * 3, "ours": [1.5] * 3}
    assert "bf16_times_faster_than" not in summary(other)
