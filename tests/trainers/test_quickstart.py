"""The quickstart as a whole, on a few rows: every part is there, and the baselines can be added to
a finished run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from visa_core import Pipeline
from visa_core.training.checkpoint import CheckpointError
from visa_trainers import quickstart, recipe
from visa_trainers.quickstart import QuickstartConfig

ROWS = 96
SIZES = replace(
    recipe.SMOKE,
    **dict.fromkeys(("dialogues", "instructions", "nli_pairs", "paraphrases", "triplets"), ROWS),
    tasks=40,
    held_out=6,
    base_steps=3,
    sft_steps=2,
    grpo_steps=2,
)


def test_every_part_and_baselines_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SMOKE", SIZES)
    monkeypatch.setitem(recipe.REWRITER, "max_completion", 24)
    settings = QuickstartConfig(out=tmp_path / "out", seed=3, smoke=True)
    first = json.loads(quickstart.run(settings).read_text())
    trained = ["vanilla", "sft", "grpo"]
    assert list(first["methods"]) == ["copy", *(n + g for n in trained for g in ("", "_greedy"))]
    assert {"n", "fwd_mean", "jsr", "mad", "true_jsr"} <= set(first["methods"]["grpo"])
    stages = {"data", "detector", "translator", "nli", "base", "sft", "grpo", "evaluation"}
    assert stages <= set(first["timing_s"]) and first["config"]["seed"] == 3
    parts = [settings.out / n for n in ("detector", "translator", "fact_analyzer", "sft", "grpo")]
    weights = {p: p.stat().st_mtime_ns for part in parts for p in part.rglob("model.safetensors")}

    second = json.loads(quickstart.run(replace(settings, baselines=True)).read_text())
    assert set(second["config"]["recipe"]) - set(first["config"]["recipe"]) == {"dpo", "simpo"}
    assert list(second["methods"])[1::2] == ["vanilla", "sft", "dpo", "simpo", "grpo"]
    for name, figures in first["methods"].items():
        assert second["methods"][name] == figures, name
    assert weights and all(p.stat().st_mtime_ns == time for p, time in weights.items())
    pairs = [(settings.out / n / "pairs.jsonl").read_text() for n in ("dpo", "simpo")]
    assert pairs[0] == pairs[1]

    result = Pipeline.from_pretrained(settings.out).rewrite("Why ?", "It is so .", target="power=1")
    assert set(result.values_after) >= {"power", "security"}
    with pytest.raises(CheckpointError, match="quickstart with other settings"):
        quickstart.run(replace(settings, seed=4))
