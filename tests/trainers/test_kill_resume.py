"""A GRPO run that is killed and resumed repeats the uninterrupted one bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import tiny
from visa_core.training.checkpoint import atomic_folder, recover_folder
from visa_core.training.run import Run, RunFinished
from visa_core.training.supervised import write_result

STEPS = 14


def command(system: Path, tasks: Path, out: Path, *more: str) -> list[str]:
    options = {
        "model": system / "rewriter",
        "data": f"jsonl:{tasks}",
        "out": out,
        "max-prompt": 160,
        "max-completion": 12,
        "steps": STEPS,
        "save-every": 3,
        "batch-size": 8,
        "accumulation": 2,
        "group-size": 4,
        "lr": "5e-3",
        "precision": "fp32",
        "device": "cpu",
        "kl-beta": "0.01",
        "detector": system / "detector",
        "translator": system / "translator",
        "fact-analyzer": system / "fact_analyzer",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "visa_core.cli", "train", "grpo", *flags, *more]


def start(repo: Path, arguments: list[str]) -> subprocess.Popen[str]:
    paths = os.pathsep.join(str(repo / part) for part in ("", "kernels", "trainers"))
    return subprocess.Popen(
        arguments,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_line(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Until the run has logged `count` steps; fails where it ends before."""
    limit = time.monotonic() + 240
    while complete_lines(path) < count:
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(f"ended with {process.returncode}: {process.stderr.read()[-2000:]}")
        assert time.monotonic() < limit, "the run makes no progress"
        time.sleep(0.002)


def figures(out: Path) -> list[dict]:
    """Metrics without what tells the time."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "time" and not k.endswith("_s")} for r in rows]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", n=10)


@pytest.fixture(scope="module")
def uninterrupted(
    repo: Path, small_system: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("whole") / "grpo"
    process = start(repo, command(small_system, tasks, out))
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    rows = figures(out)
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert len({row["loss"] for row in rows}) > STEPS // 2, "the run must have something to repeat"
    return out


def assert_same(out: Path, expected: Path) -> None:
    assert figures(out) == figures(expected)
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (expected / "model.safetensors").read_bytes()
    assert json.loads((out / "run.json").read_text())["finished"] is True
    assert not (out / "checkpoints").exists()
    assert [path.name for path in out.parent.iterdir()] == [out.name], "leftovers"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_resumed(
    repo: Path, small_system: Path, tasks: Path, uninterrupted: Path, tmp_path: Path, seed: int
) -> None:
    """Two kills a run, after a random number of steps and a random part of the next one."""
    draw = random.Random(seed)
    out = tmp_path / "grpo"
    log = out / "metrics.jsonl"
    moments = sorted(draw.sample(range(1, STEPS), 2))
    for number, moment in enumerate(moments):
        more = ["--resume"] if number else []
        process = start(repo, command(small_system, tasks, out, *more))
        wait_for_line(process, log, moment)
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(repo, command(small_system, tasks, out, "--resume"))
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert_same(out, uninterrupted)


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_with_130(
    repo: Path, small_system: Path, tasks: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "grpo"
    process = start(repo, command(small_system, tasks, out))
    wait_for_line(process, out / "metrics.jsonl", 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "--resume" in said
    saved = sorted(path.name for path in (out / "checkpoints").iterdir())
    done = complete_lines(out / "metrics.jsonl")
    assert saved[-1] == f"step-{done:08d}", "the step that ran was finished and saved"
    process = start(repo, command(small_system, tasks, out, "--resume"))
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert_same(out, uninterrupted)


class Dying(Exception):
    """Stands for the end of the process at one line."""


def small_run(out: Path, *, resume: bool = False) -> tuple[Run, torch.nn.Linear]:
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 1)
    run = Run(out, 6, {"model": model}, save_every=2, resume=resume, config={"lr": 0.1})
    return run, model


def train(out: Path, *, resume: bool = False, stop_after: int | None = None) -> torch.nn.Linear:
    """Six steps of noise; `stop_after` dies between that step's log and its checkpoint."""
    run, model = small_run(out, resume=resume)
    for step in run.steps():
        with torch.no_grad():
            model.weight += torch.randn(1, 3)
        run.log(step, {"sum": model.weight.detach().sum()})
        if step == stop_after:
            raise Dying
    write_result(out, lambda folder: torch.save(model.weight, folder / "weight.pt"))
    return model


@pytest.mark.parametrize("step", range(6))
def test_death_between_log_and_checkpoint(tmp_path: Path, step: int) -> None:
    expected = train(tmp_path / "whole").weight
    out = tmp_path / "out"
    with pytest.raises(Dying):
        train(out, stop_after=step)
    assert torch.equal(train(out, resume=True).weight, expected)
    assert figures(out) == figures(tmp_path / "whole")


@pytest.mark.parametrize("tail", ["", '{"step": 3, "su', "\n", '{"step": 2, "sum": 0.0}\n{"ste'])
def test_a_torn_line_of_metrics_is_written_anew(tmp_path: Path, tail: str) -> None:
    train(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Dying):
        train(out, stop_after=2)
    with (out / "metrics.jsonl").open("a") as file:
        file.write(tail)
    train(out, resume=True)
    assert figures(out) == figures(tmp_path / "whole")


def dead_process() -> int:
    """The id of a process that is no more."""
    return int(
        subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_a_folder_moved_away_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    """Killed between the two renames that put the result in the run's place."""
    train(tmp_path / "whole")
    out = tmp_path / "place" / "out"
    with pytest.raises(Dying):
        train(out, stop_after=4)
    pid = dead_process()
    out.rename(out.with_name(f".out.old-{pid}"))
    out.with_name(f".out.writing-{pid}").mkdir()
    train(out, resume=True)
    assert figures(out) == figures(tmp_path / "whole")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    living = tmp_path / f".out.writing-{os.getppid()}"
    living.mkdir()
    dead = tmp_path / f".out.writing-{dead_process()}"
    dead.mkdir()
    other = tmp_path / f".out2.writing-{dead_process()}"
    other.mkdir()
    recover_folder(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([living, other])


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder) as scratch:
        (scratch / "a").write_text("old")
    with pytest.raises(Dying), atomic_folder(folder) as scratch:
        (scratch / "a").write_text("new")
        raise Dying
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(tmp_path / "out")
    with pytest.raises(RunFinished, match="nothing is left to resume"):
        train(tmp_path / "out", resume=True)


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(Dying):
        train(tmp_path / "out", stop_after=3)
    with pytest.raises(ValueError, match="unfinished run: continue it with --resume"):
        train(tmp_path / "out")
