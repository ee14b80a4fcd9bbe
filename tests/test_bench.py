"""The benchmark runner: what it writes, and that it gives no time to a wrong result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import registry
from bench import run as runner


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers do not matter here."""
    monkeypatch.setattr(runner, "MIN_RUNS", 2)


def test_a_run_writes_percentiles_rates_and_where_they_come_from(tmp_path: Path) -> None:
    status = runner.main(["--op", "packing", "--seconds", "0.01", "--out", str(tmp_path)])
    assert status == 0
    result = json.loads((tmp_path / "packing.json").read_text())
    assert result["versions"]["torch"] == torch.__version__
    assert {"device", "date", "commit", "cores", "torch_threads", "copy_gb_per_s"} <= set(result)
    rows = [row for row in result["rows"] if "skipped" not in row]
    assert {row["case"] for row in rows} == {"n=64", "n=1024", "n=16384"}
    for row in rows:
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["runs"] >= runner.MIN_RUNS
        moved = row["gb_per_s"] * row["p50_ms"] * 1e6
        assert moved == pytest.approx(16 * int(row["case"][2:]), rel=0.5, abs=2e4)


def test_a_wrong_provider_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_ops", {})
    registry.register(
        registry.Op(
            name="double",
            cases=(registry.Case(name="x", build=lambda d: {"x": torch.ones(3)}, bytes_moved=24),),
            providers={"right": lambda i: 2 * i["x"], "wrong": lambda i: 2.1 * i["x"]},
        )
    )
    assert runner.main(["--seconds", "0.01", "--out", str(tmp_path)]) == 1
    right, wrong = json.loads((tmp_path / "double.json").read_text())["rows"]
    assert right["p50_ms"] > 0
    assert "p50_ms" not in wrong
    assert "not close" in wrong["mismatch"]
    assert "WRONG, no time given" in capsys.readouterr().out


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no op named pakcing; there are group_advantages, "):
        runner.main(["--op", "pakcing", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(registry.ops(("packing",))[0])
