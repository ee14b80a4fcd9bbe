"""One rank and two: the same losses, plain and under DeepSpeed's ZeRO; a rank that is killed; vLLM
on gathered weights.

All ranks of the file run in one process's children (`rank_jobs`), each job with two of them unless
it says otherwise, and talk through gloo.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.trainers.test_grpo_faults import figures
from tests.vllm_build import FOLDER, needs_vllm
from visa_core.models.rewriter import Rewriter

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, DEATH = 4, 3
TIMES = ("time", "target_s", "sample_s", "score_s", "train_s")


class Runs:
    """Folders of finished jobs, and their ranks' exit statuses and output."""

    def __init__(self, folder: Path, statuses: dict[str, list[int]]) -> None:
        self.folder, self.statuses = folder, statuses

    def rows(self, name: str) -> list[dict[str, Any]]:
        assert (self.folder / name / "metrics.jsonl").is_file(), self.said(name)
        return figures(self.folder / name)

    def said(self, name: str) -> str:
        logs = sorted(self.folder.glob(f"{name}.*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in logs)


def run_jobs(folder: Path, jobs: dict[str, Any]) -> Runs:
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    paths = [".", "kernels", "trainers", *([str(FOLDER)] if FOLDER.is_dir() else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment["PYTHONWARNINGS"] = "ignore"
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainers.rank_jobs", str(path)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Runs(folder, json.loads(path.with_suffix(".out.json").read_text()))


def wide_rewriter(folder: Path) -> None:
    """A rewriter whose completions differ and end, so that groups have spread; vLLM can run it."""
    small = Rewriter.small(
        tiny.texts(),
        hidden=64,
        layers=1,
        heads=2,
        intermediate=64,
        max_prompt=160,
        max_completion=96,
    )
    for name, weight in small.model.named_parameters():
        if "layers" in name and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    small.save_pretrained(folder)


@pytest.fixture(scope="module")
def runs(small_system: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ranks")
    wide_rewriter(folder / "rewriter")
    tasks = tiny.write_tasks(folder / "tasks.jsonl", n=12)
    common = {
        "model": str(folder / "rewriter"),
        "data": [f"jsonl:{tasks}"],
        "max_prompt": 160,
        "steps": STEPS,
        "save_every": 2,
        "precision": "fp32",
        "device": "cpu",
    }
    scorers = {name: str(small_system / name) for name in ("detector", "fact_analyzer")}
    words = list(Rewriter.from_pretrained(folder / "rewriter").tokenizer.get_vocab())
    ends = sorted(words)[::25]  # some completions end, and some groups have none that does

    def grpo(name: str, ranks: int = 2, dies: Any = None, **changes: Any) -> dict[str, Any]:
        own = {"max_completion": 8, "batch_size": 8, "accumulation": 3, "group_size": 4, "lr": 1e-3}
        own |= {"advantage_scale": "batch", "stop_tokens": ends, **scorers}
        config = common | own | {"out": str(folder / name)} | changes
        return {"stage": "grpo", "ranks": ranks, "config": config, "dies": dies}

    def sft(name: str, ranks: int = 2, **changes: Any) -> dict[str, Any]:
        own = {"max_completion": 96, "batch_size": 4, "lr": 5e-3, "token_budget": 600}
        config = common | own | {"out": str(folder / name)} | changes
        return {"stage": "sft", "ranks": ranks, "config": config}

    fresh = {
        "resample": {"below": 1.0, "tries": 1},
        "held_out": {"data": [f"jsonl:{tasks}"], "every": 2, "prompts": 3, "keep_best": True},
    }
    jobs = {
        "grpo-1": grpo("grpo-1", 1, **fresh),
        "grpo-2": grpo("grpo-2", **fresh),
        "grpo-z1": grpo("grpo-z1", zero=1, **fresh),
        "grpo-z2": grpo("grpo-z2", zero=2, updates=2, kl_beta=0.05),
        "grpo-p2": grpo("grpo-p2", 1, updates=2, kl_beta=0.05),
        "grpo-z3": grpo("grpo-z3", zero=3, **fresh),
        "sft-1": sft("sft-1", 1),
        "sft-2": sft("sft-2"),
        "sft-z3": sft("sft-z3", zero=3),
        "sft-bf16": sft("sft-bf16", 1, weights="bf16"),
        "sft-z3-saving": sft(
            "sft-z3-saving", weights="bf16", zero=3, offload=True, gradient_checkpointing=True
        ),
        "killed": grpo("killed", zero=3, dies={"rank": 1, "step": DEATH}, **fresh),
        "killed-again": grpo("killed", zero=3, resume=True, **fresh),
    }
    if FOLDER.is_dir():
        small = {"kv_cache_gib": 0.05, "max_rows": 24}
        jobs["vllm-z3"] = grpo("vllm-z3", zero=3, engine="vllm", vllm=small)
        jobs["vllm-2"] = grpo("vllm-2", engine="vllm", vllm=small)
    return run_jobs(folder, jobs)


def agree(one: list[dict[str, Any]], two: list[dict[str, Any]], tolerance: float = 1e-4) -> None:
    """All figures of all steps, but what depends on how rows are split into passes."""
    assert len(one) == len(two) == STEPS
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"ess", *TIMES}:
            assert b[name] == pytest.approx(a[name], rel=tolerance, abs=1e-5), (a["step"], name)


@pytest.mark.parametrize("name", ["grpo-2", "grpo-z1", "grpo-z3"])
def test_two_ranks_do_what_one_does(runs: Runs, name: str) -> None:
    assert runs.statuses[name] == [0, 0], runs.said(name)
    one = runs.rows("grpo-1")
    agree(one, runs.rows(name))
    assert all(row["loss"] != 0 and row["grad_norm"] > 1e-3 for row in one), "there is something"
    assert any(row["drawn_again"] > 0 for row in one)
    assert [row["step"] for row in one if "eval_joint" in row] == [1, 3]
    results = [Rewriter.from_pretrained(runs.folder / n).model for n in ("grpo-1", name)]
    for a, b in zip(*(model.parameters() for model in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)
    best = [
        json.loads((runs.folder / n / "best" / "evaluation.json").read_text())["step"]
        for n in ("grpo-1", name)
    ]
    assert best[0] == best[1]


def test_stage_2_with_two_updates_and_a_reference(runs: Runs) -> None:
    assert runs.statuses["grpo-z2"] == [0, 0], runs.said("grpo-z2")
    agree(runs.rows("grpo-p2"), runs.rows("grpo-z2"), 1e-3)
    assert all(row["ref_kl"] > 0 for row in runs.rows("grpo-p2")[1:])


@pytest.mark.parametrize("name", ["sft-2", "sft-z3"])
def test_sft_on_two_ranks_does_what_one_does(runs: Runs, name: str) -> None:
    assert runs.statuses[name] == [0, 0], runs.said(name)
    agree(runs.rows("sft-1"), runs.rows(name))


def test_what_saves_memory_changes_no_loss_beyond_rounding(runs: Runs) -> None:
    """bf16 weights with masters in host memory and layers computed again, partitioned."""
    assert runs.statuses["sft-z3-saving"] == [0, 0], runs.said("sft-z3-saving")
    pairs = zip(runs.rows("sft-bf16"), runs.rows("sft-z3-saving"), strict=True)
    for one, two in pairs:
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_a_rank_that_is_killed_stops_the_other_and_the_run_resumes_to_the_same_losses(
    runs: Runs,
) -> None:
    statuses = runs.statuses["killed"]
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] == 2, "a sentence and status 2: " + runs.said("killed")
    assert "has lost another rank" in runs.said("killed") and "--resume" in runs.said("killed")
    assert runs.statuses["killed-again"] == [0, 0], runs.said("killed-again")
    rows = runs.rows("killed")
    assert rows == runs.rows("grpo-z3"), "bit for bit, the steps before and after the death"


@needs_vllm
@pytest.mark.parametrize("name", ["vllm-z3", "vllm-2"])
def test_weights_reach_the_vllm_of_every_rank(runs: Runs, name: str) -> None:
    """In gathered buckets where they are partitioned, as views where they are not. Its logprobs
    are those of the trained weights after updates as well: stale ones would differ by what three
    updates move.
    """
    assert runs.statuses[name] == [0, 0], runs.said(name)
    rows = runs.rows(name)
    assert len(rows) == STEPS and all(row["grad_norm"] > 1e-3 for row in rows)
    assert max(row["max_abs_dlogp"] for row in rows) < 1e-4
