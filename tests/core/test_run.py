"""Runs on disk: data order, randomness, resuming, interruption."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from visa_core.training.checkpoint import CheckpointError, list_checkpoints
from visa_core.training.run import (
    Run,
    TrainingStopped,
    batch_rows,
    epoch_order,
    open_run,
    step_seed,
)


def make(out: Path, total: int = 6, **options: Any) -> tuple[Run, torch.nn.Linear]:
    model = torch.nn.Linear(2, 1)
    return Run(out, total, {"model": model}, **{"save_every": 2, **options}), model


def logged(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_the_order_of_an_epoch_is_a_permutation_that_seed_and_epoch_decide(n: int) -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            order = epoch_order(n, seed, epoch)
            torch.manual_seed(5 * seed + epoch)
            assert order.equal(epoch_order(n, seed, epoch))
            assert sorted(order.tolist()) == list(range(n))
            orders[seed, epoch] = tuple(order.tolist())
    if n == 100:
        assert len(set(orders.values())) == 4


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (4, 4), (5, 16), (1, 3)])
def test_batches_follow_epoch_after_epoch_without_a_gap(n: int, batch: int) -> None:
    steps = 4 * n // batch + 2
    stream = [row for step in range(steps) for row in batch_rows(n, batch, 3, step).tolist()]
    assert len(stream) == steps * batch
    for epoch in range(len(stream) // n):
        part = stream[epoch * n : (epoch + 1) * n]
        assert part == epoch_order(n, 3, epoch).tolist()
    assert max(Counter(stream).values()) - min(Counter(stream).values()) <= 1


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="training set is empty"):
        batch_rows(0, 4, 0, 0)


def test_seeds_of_steps_do_not_meet() -> None:
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(-20, 200)}
    assert len(seeds) == 20 * 220
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_randomness_of_a_step_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    def noise(name: str, seed: int, waste: int) -> list[float]:
        run, _ = make(tmp_path / name, seed=seed)
        drawn = []
        for _ in run.steps():
            drawn.append(torch.rand(()).item())
            torch.rand(waste)
        return drawn

    assert noise("a", 0, 0) == noise("b", 0, 9) != noise("c", 1, 0)
    assert len(set(noise("d", 0, 0))) == 6


def test_resuming_cuts_the_metrics_to_the_checkpoint(tmp_path: Path) -> None:
    run, model = make(tmp_path)
    for step in run.steps():
        run.log(step, {"loss": float(step)})
        with torch.no_grad():
            model.weight += 1
        if step == 4:
            break  # step 4 is logged, but the last checkpoint was made after step 3
    kept = model.weight - 1
    assert logged(tmp_path) == [0, 1, 2, 3, 4]
    resumed, again = make(tmp_path, resume=True)
    assert logged(tmp_path) == [0, 1, 2, 3]
    torch.testing.assert_close(again.weight, kept)
    steps = []
    for step in resumed.steps():
        steps.append(step)
        resumed.log(step, {"loss": float(step)})
    assert steps == [4, 5] and logged(tmp_path) == list(range(6))


def test_resuming_where_nothing_was_saved_starts_anew(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    for step in run.steps():
        run.log(step, {"loss": 1.0})
        break
    resumed, _ = make(tmp_path, resume=True)
    assert logged(tmp_path) == [] and list(resumed.steps()) == list(range(6))


def interrupted(out: Path, config: dict[str, Any]) -> None:
    run, _ = make(out, config=config)
    for step in run.steps():
        if step == 3:
            break


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.2}, "config.lr: 0.1 -> 0.2"),
        ({"reward": {"weight": 2}}, "config.reward.weight: 1 -> 2"),
        ({"data": ["b"]}, r"config.data: \['a'\] -> \['b'\]"),
        ({"new": 1}, "config.new: None -> 1"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    config = {"lr": 0.1, "reward": {"weight": 1}, "data": ["a"], "out": tmp_path, "resume": False}
    interrupted(tmp_path, config)
    with pytest.raises(CheckpointError, match=f"--resume with other settings than .*{named}"):
        make(tmp_path, resume=True, config=config | change)
    with pytest.raises(CheckpointError, match="total_steps: 6 -> 7"):
        make(tmp_path, total=7, resume=True, config=config)
    make(tmp_path, resume=True, config=config | {"resume": True, "data": ("a",)})


@dataclass(frozen=True, kw_only=True)
class Part:
    every: int = 50
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """As a stage has them; `lr`, `tags` and `part` are newer than the run."""

    out: Path
    seed: int = 0
    save_every: int = 2
    resume: bool = True
    tensorboard: bool = False
    lr: float = 0.1
    tags: tuple[str, ...] = ("a", "b")
    part: Part = field(default_factory=Part)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, None),
        ({"lr": 0.2}, "config.lr: 0.1 -> 0.2"),
        ({"tags": ()}, r"config.tags: \['a', 'b'\] -> \[\]"),
        ({"part": Part(best=True)}, "config.part.best: False -> True"),
    ],
)
def test_a_run_older_than_a_setting_goes_on_with_its_default(
    tmp_path: Path, settings: dict[str, Any], refused: str | None
) -> None:
    older = {"out": tmp_path, "seed": 0, "save_every": 2, "resume": False, "tensorboard": False}
    interrupted(tmp_path, older)
    state = {"model": torch.nn.Linear(2, 1)}
    if refused is None:
        assert open_run(Settings(out=tmp_path), 6, state, "test").first_step == 2
        return
    with pytest.raises(CheckpointError, match=refused):
        open_run(Settings(out=tmp_path, **settings), 6, state, "test")


def test_ctrl_c_finishes_the_step_saves_and_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run, model = make(tmp_path, save_every=100)
    ended = []
    with pytest.raises(TrainingStopped) as stopped:
        for step in run.steps():
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            with torch.no_grad():
                model.weight += 1
            ended.append(step)
    assert stopped.value.code == 130 and ended == [0, 1, 2]
    assert f"stopped at step 3; continue with --resume --out {tmp_path}" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    resumed, again = make(tmp_path, resume=True, save_every=100)
    assert list(resumed.steps()) == [3, 4, 5] and again.weight.equal(model.weight)


def test_ctrl_c_in_the_last_step_leaves_only_the_result_to_write(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    with pytest.raises(TrainingStopped):
        for step in run.steps():
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
    resumed, _ = make(tmp_path, resume=True)
    assert list(resumed.steps()) == []


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run, _ = make(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        for _ in run.steps():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second one must not wait")
    run.steps().close()
    assert list_checkpoints(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_metrics_are_valid_json_whatever_they_hold(tmp_path: Path) -> None:
    run, _ = make(tmp_path)
    run.log(0, {"loss": torch.tensor(0.5), "bad": math.nan, "far": -math.inf, "n": 3})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (row["step"], row["loss"], row["bad"], row["far"], row["n"]) == (
        0,
        0.5,
        "nan",
        "-inf",
        3,
    )


def test_tensorboard_files_hold_the_figures(tmp_path: Path) -> None:
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, _ = make(tmp_path, tensorboard=True, label="sft")
    for step in run.steps():
        run.log(step, {"loss": 2.0 * step})
    events = board.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("sft/loss")]
    assert scalars == [(step, 2.0 * step) for step in range(6)]
