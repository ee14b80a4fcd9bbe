"""Faults of a GRPO run: an engine that fails, scores that are not finite; a run of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from visa_core.config import GRPOConfig, RewardConfig
from visa_core.config.lora import LoraSettings
from visa_core.models.detector import Detector
from visa_core.models.rewriter import Rewriter
from visa_core.rewards import NonFiniteRewardError
from visa_core.rollout.errors import RolloutError
from visa_core.rollout.hf import HFEngine
from visa_core.training import actor
from visa_trainers import grpo

STEPS = 4


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", n=6)


def settings(system: Path, tasks: Path, out: Path, **changes: Any) -> GRPOConfig:
    common: dict[str, Any] = {
        "model": system / "rewriter",
        "data": (f"jsonl:{tasks}",),
        "out": out,
        "detector": system / "detector",
        "fact_analyzer": system / "fact_analyzer",
        "max_prompt": 160,
        "max_completion": 8,
        "steps": STEPS,
        "save_every": 2,
        "batch_size": 8,
        "accumulation": 1,
        "group_size": 4,
        "lr": 5e-3,
        "precision": "fp32",
        "device": "cpu",
    }
    return GRPOConfig(**common | changes)


def figures(out: Path) -> list[dict[str, Any]]:
    """Metrics without what tells the time."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "time" and not k.endswith("_s")} for r in rows]


def test_an_engine_that_fails_stops_the_run_and_it_resumes_to_the_same_losses(
    small_system: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    grpo.train(settings(small_system, tasks, whole, samples_every=1, samples=2))
    calls, generate = [0], HFEngine.generate

    def failing(engine: HFEngine, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise RolloutError("the engine died")
        return generate(engine, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(HFEngine, "generate", failing)
        with pytest.raises(RolloutError, match="the engine died"):
            grpo.train(settings(small_system, tasks, out, samples_every=1, samples=2))
    assert len(figures(out)) == 3, "the steps before it are kept"
    grpo.train(settings(small_system, tasks, out, resume=True, samples_every=1, samples=2))
    assert figures(out) == figures(whole)
    tables = [(folder / "samples.jsonl").read_text() for folder in (out, whole)]
    assert tables[0] == tables[1]
    table = [json.loads(line) for line in tables[0].splitlines()]
    assert len(table) == STEPS * 2 * 2
    assert all(b["reward"] >= w["reward"] for b, w in zip(table[::2], table[1::2], strict=True))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert weights[0] == weights[1]


def test_scores_that_are_not_finite_stop_the_run_or_are_counted_as_the_worst(
    small_system: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Detector.predict

    def sick(detector: Detector, *args: Any, **options: Any) -> torch.Tensor:
        values = predict(detector, *args, **options).clone()
        values[: len(values) // 2] = torch.nan
        return values

    def targets(batch: list[Any], detector: Any, translator: Any, space: Any) -> torch.Tensor:
        return torch.full((len(batch), space.size), 0.5)

    monkeypatch.setattr(Detector, "predict", sick)
    monkeypatch.setattr(actor, "predicted_targets", targets)
    with pytest.raises(NonFiniteRewardError, match="The step was not taken"):
        grpo.train(settings(small_system, tasks, tmp_path / "strict"))
    assert figures(tmp_path / "strict") == []
    lenient = RewardConfig(non_finite="worst")
    grpo.train(settings(small_system, tasks, tmp_path / "out", reward=lenient))
    rows = figures(tmp_path / "out")
    assert len(rows) == STEPS and all(row["non_finite"] > 0 for row in rows)
    assert all(isinstance(row["loss"], float) and abs(row["loss"]) < 100 for row in rows)
    model = Rewriter.from_pretrained(tmp_path / "out").model
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_an_adapter_is_merged_into_the_result_and_lies_beside_it(
    small_system: Path, tasks: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "out"
    lora = LoraSettings(rank=2, alpha=8.0, targets=("q_proj", "v_proj"))
    grpo.train(settings(small_system, tasks, out, lora=lora, kl_beta=0.01, lr=5e-2))
    base = Rewriter.from_pretrained(small_system / "rewriter").model.state_dict()
    result = Rewriter.from_pretrained(out).model.state_dict()
    assert base.keys() == result.keys()
    changed = {name for name in base if not torch.equal(base[name], result[name])}
    assert changed and all("q_proj" in name or "v_proj" in name for name in changed)
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 2 and set(adapter["target_modules"]) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_budget": 100}, "--token-budget 100 is less than one completion may need"),
        ({"lora": LoraSettings(rank=2), "zero": 1}, "--lora.rank needs --zero 0"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(Path("s"), Path("t"), Path("o"), **changes)
