"""Figures of a run at trackers, without a network: read back from what they keep on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from visa_core.training.run import Run
from visa_core.training.tracking import ID


def three_steps(out: Path, track: str) -> None:
    run = Run(out, 3, {}, label="grpo", track=track, track_project="visa-test", config={"lr": 0.5})
    for step in run.steps():
        run.log(step, {"reward": step + 0.25})


def test_trackio_keeps_the_figures_of_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    from trackio import sqlite_storage, utils

    folder = tmp_path / "trackio"
    for module in (sqlite_storage, utils):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    three_steps(tmp_path / "out", "trackio")
    assert any(folder.iterdir()), "nothing is written elsewhere"
    name = (tmp_path / "out" / ID).read_text().strip()
    logs = sqlite_storage.SQLiteStorage.get_logs("visa-test", name)
    assert [(row["step"], row["grpo/reward"]) for row in logs] == [(0, 0.25), (1, 1.25), (2, 2.25)]


def test_wandb_keeps_the_figures_of_every_step_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    three_steps(tmp_path / "out", "wandb")
    wandb.teardown()  # its second process writes what it still holds
    (file,) = (tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb")
    kept = file.read_bytes()
    assert b"grpo/reward" in kept and b"2.25" in kept and b"visa-test" in kept
    name = (tmp_path / "out" / ID).read_text().strip()
    assert file.name == f"run-{name}.wandb"


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_one_that_is_missing_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ValueError, match=f"--track {kind} needs the package {kind}: pip install"):
        three_steps(tmp_path / "out", kind)


def test_a_resumed_run_keeps_its_name(tmp_path: Path) -> None:
    from visa_core.training.tracking import _name

    first = _name(tmp_path)
    assert first.startswith(tmp_path.name) and _name(tmp_path) == first
