"""The benches of engines and of overlap on a small system; the verdict on known courses of runs."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import engines, overlap
from tests import tiny
from visa_core.data.schema import write_jsonl


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `visa quickstart` leaves before GRPO: scorers, an SFT model, tasks; untrained."""
    torch.manual_seed(0)
    folder = tiny.write_small_system(tmp_path_factory.mktemp("trained"))
    (folder / "rewriter").rename(folder / "sft")
    (folder / "data").mkdir()
    tasks = [replace(e, reference=None, target=None, values=None) for e in tiny.examples(24)]
    write_jsonl(folder / "data" / "tasks.jsonl", tasks)
    return folder


def test_a_run_is_done_once(trained: Path, tmp_path: Path) -> None:
    given = ["--system", str(trained), "--work", str(tmp_path), "--steps", "2", "--prompts", "2"]
    assert engines.main([*given, "--engine", "hf", "--seeds", "1"]) == 0
    options = engines.parse([*given, "--last", "1"])
    folder = engines.folder_of(options, "hf", 1)
    assert engines.finished(folder) and not engines.finished(tmp_path / "hf-0")
    found = engines.last_steps(folder, 1)
    assert found["steps"] == 2 and found["max_abs_dlogp"] < 1e-4
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert found["reward"] == rows[-1]["reward"]


def test_overlap_gives_the_same_rewards(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--system", str(trained), "--steps", "1", "--turns", "1", "--chunk", "8"]
    assert overlap.main(given) == 0
    shown = capsys.readouterr().out
    assert all(f"{way:8}" in shown for way in overlap.WAYS) and "the same rewards" in shown
    collect = overlap.one_step

    def other(actor: overlap.Actor, step: int) -> tuple[float, torch.Tensor]:
        seconds, rewards = collect(actor, step)
        return seconds, rewards + float(actor.config.overlap)

    monkeypatch.setattr(overlap, "one_step", other)
    assert overlap.main(given) == 1 and "REWARDS DIFFER" in capsys.readouterr().out


def write_run(folder: Path, rewards: list[float]) -> None:
    folder.mkdir(parents=True)
    rows = [
        {name: 0.5 for name in engines.FIGURES}
        | {name: 0.25 + step for name in engines.SECONDS}
        | {"reward": reward}
        for step, reward in enumerate(rewards)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("rewards", "agree"), [((1.7, 1.8, 1.9), True), ((1.3, 1.4, 1.5), False)]
)
def test_verdict(tmp_path: Path, rewards: tuple[float, ...], agree: bool) -> None:
    hf = (1.6, 1.7, 1.9)
    for seed in range(3):
        write_run(tmp_path / f"hf-{seed}", [9.0, hf[seed] - 0.1, hf[seed] + 0.1])
        write_run(tmp_path / f"vllm-{seed}", [9.0, rewards[seed], rewards[seed]])
    options = argparse.Namespace(work=tmp_path, seeds=[0, 1, 2], last=2, steps=3, prompts=2)
    result = engines.compared(options)
    assert result["spread_of_hf"] == pytest.approx(0.3)
    assert result["difference"] == pytest.approx(sum(rewards) / 3 - sum(hf) / 3)
    assert result["agree"] is agree
    run = result["runs"]["hf"]["1"]
    assert run["reward"] == pytest.approx(1.7) and run["first_reward"] == 9.0
    assert run["steps"] == 3 and run["step_s"] == pytest.approx(4 * 1.25)
    assert ("DISAGREE" in engines.table(result)) is not agree
