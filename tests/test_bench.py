"""The benchmark runner: what it writes, and that it gives no time to a wrong result."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import (
    ceiling,
    gate,
    gpu,
    measure,
    memory,
    peers,
    plot,
    registry,
    table,
    timing,
)
from bench import run as runner

Provider = Callable[[dict[str, Any]], Any]
copy_bandwidth = runner.copy_bandwidth
peers.attach()


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers do not matter here; a full collection takes long beside other tests' objects."""
    monkeypatch.setattr(gc, "collect", lambda: 0)
    monkeypatch.setattr(runner, "MIN_RUNS", 2)
    monkeypatch.setattr(runner, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setitem(ceiling.COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(ceiling.GEMM_SHAPES, "cpu", (32, 32, 32))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., registry.Op]:
    """Registers one op on x = ones [3] as the only one."""
    monkeypatch.setattr(registry, "_ops", {})

    def enter(
        providers: dict[str, Provider], *, case: dict[str, Any] | None = None, **fields: Any
    ) -> registry.Op:
        about = {"name": "x", "build": lambda d: {"x": torch.ones(3)}, "bytes_moved": 24}
        made = registry.Op(
            name="toy",
            cases=fields.pop("cases", (registry.Case(**{**about, **(case or {})}),)),
            providers=providers,
            **fields,
        )
        registry.register(made)
        return made

    return enter


def run_rows(folder: Path, *arguments: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """Rows of the toy op by provider."""
    assert runner.main(["--seconds", "0.01", "--out", str(folder), *arguments]) == status
    rows = json.loads((folder / "toy.json").read_text())["rows"]
    return {row["provider"]: row for row in rows}


def test_a_run_writes_percentiles_rates_and_where_they_come_from(tmp_path: Path) -> None:
    chosen = ["--op", "packing", "--case", "n=64", "--case", "n=1024"]
    chosen += ["--provider", "reference", "--provider", "cpu"]
    assert runner.main([*chosen, "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "packing.json").read_text())
    assert result["versions"]["torch"] == torch.__version__
    assert {"device", "date", "commit", "cores", "torch_threads", "copy_gb_per_s"} <= set(result)
    rows = [row for row in result["rows"] if "p50_ms" in row]
    assert {row["case"] for row in rows} == {"n=64", "n=1024"}
    for row in rows:
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["runs"] >= runner.MIN_RUNS
        moved = row["gb_per_s"] * row["p50_ms"] * 1e6
        assert moved == pytest.approx(16 * int(row["case"][2:]), rel=0.5, abs=2e4)
        assert row["peak_mib"] >= row["scratch_mib"] >= 0


def test_a_wrong_provider_gets_no_time(
    tmp_path: Path, only: Callable[..., registry.Op], capsys: pytest.CaptureFixture[str]
) -> None:
    only({"right": lambda i: 2 * i["x"], "wrong": lambda i: 2.1 * i["x"]})
    rows = run_rows(tmp_path, status=1)
    assert rows["right"]["p50_ms"] > 0
    assert "p50_ms" not in rows["wrong"]
    assert "not close" in rows["wrong"]["mismatch"]
    assert "WRONG, no time given" in capsys.readouterr().out


def test_low_precision_is_held_against_float64(
    tmp_path: Path, only: Callable[..., registry.Op]
) -> None:
    """As bad as torch in the same dtype passes, much worse does not, nor does a NaN."""

    def build(device: str) -> dict[str, Any]:
        return {"x": torch.randn(4096).bfloat16()}

    exact = {"x": build("cpu")["x"]}

    def off_by(share: float) -> Provider:
        return lambda i: (i["x"].double().exp() * (1 + share)).float()

    only(
        {
            "reference": lambda i: i["x"].float().exp(),
            "eager": lambda i: i["x"].exp(),
            "better": off_by(1e-4),
            "worse": off_by(0.05),
            "nan": lambda i: i["x"].float().exp().log().sqrt(),
            "shape": lambda i: i["x"][:5],
            "peer": off_by(0.05),
        },
        case={"build": lambda d: exact, "dtype": "bfloat16"},
        exact=lambda i: i["x"].double().exp(),
        budgets={"peer": 100.0},
    )
    rows = run_rows(tmp_path, status=1)
    timed = {name for name, row in rows.items() if "p50_ms" in row}
    assert timed == {"reference", "eager", "better", "peer"}
    assert "rms error" in rows["worse"]["mismatch"]
    assert "inf" in rows["nan"]["mismatch"]
    assert "(5,), expected (4096,)" in rows["shape"]["mismatch"].replace("result is ", "")
    assert rows["eager"]["error"]["times_torch"] == pytest.approx(1.0)
    assert rows["peer"]["error"]["times_torch"] > 2


def test_errors_are_those_of_numpy() -> None:
    exact = torch.randn(100, dtype=torch.float64)
    got = exact.float() + 0.01 * torch.randn(100)
    error = gate.Error.between(got, exact)
    off = (got.double() - exact).abs().numpy()
    assert error.rms == pytest.approx((off**2).mean() ** 0.5)
    assert error.largest == pytest.approx(off.max())
    infinite = torch.tensor([float("-inf"), 1.0])
    assert gate.Error.between(infinite, infinite.double()).largest == 0


def test_providers_take_turns(only: Callable[..., registry.Op]) -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) or time.sleep(6e-3) for name in "abc"}
    times = timing.rounds(runs, "cpu", 0.0, least=4, most=4)
    assert order[-12:] == list("abcabcabcabc")
    assert {name: len(each) for name, each in times.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize("clock,least,most", [("wall", 0.02, 1.0), ("cpu", 0.0, 0.01)])
def test_waiting_is_no_cpu_time(clock: str, least: float, most: float) -> None:
    runs = {"waits": lambda: time.sleep(0.02)}
    times = timing.rounds(runs, "cpu", 0.0, least=3, most=3, clock=clock)["waits"]
    assert all(least <= each < most for each in times)


def test_ratios_and_shares_of_the_floor(tmp_path: Path, only: Callable[..., registry.Op]) -> None:
    def slow(milliseconds: float) -> Provider:
        return lambda i: (time.sleep(milliseconds / 1e3), i["x"])[1]

    only({"eager": slow(4), "fast": slow(1)}, case={"flops": 1000})
    rows = run_rows(tmp_path)
    low, middle, high = rows["fast"]["times_faster"]
    assert low <= middle <= high
    assert 2 < middle < 5
    assert rows["eager"]["times_faster"] == [1.0, 1.0, 1.0]
    assert rows["fast"]["floor_fraction"] > rows["eager"]["floor_fraction"]
    assert {"copy_gb_per_s", "gemm_tflop_per_s"} <= set(rows["fast"])


def test_the_floor_is_the_larger_of_two() -> None:
    case = registry.Case(name="x", build=lambda d: {}, bytes_moved=100, flops=1000)
    rates = {ceiling.COPY: 10.0, ceiling.GEMM: 50.0}
    assert ceiling.floor_seconds(case, rates) == 20.0
    assert ceiling.floor_seconds(case, {ceiling.COPY: 10.0}) == 10.0


def test_peak_memory_is_what_a_call_touches() -> None:
    """64 MiB of scratch and a result of 32 MiB, of which a view is returned too."""

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        scratch = torch.ones(2**24)
        result = scratch[: 2**23] + 1
        return result, result[:4]

    run()
    used = memory.of_call(run, "cpu")
    if used is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert used.result == 2**25
    assert used.peak == pytest.approx(96 * 2**20, rel=0.1)
    assert used.scratch == pytest.approx(64 * 2**20, rel=0.1)


def test_pages_are_kept_only_while_asked_for() -> None:
    """256 MiB that were freed stay in the process within the block, and leave it afterwards."""

    def resident() -> int:
        return memory._resident("VmRSS")

    if not memory.STATUS.exists():
        pytest.skip("this system does not tell a process its memory")
    before = resident()
    with memory.kept_pages(True):
        torch.ones(2**26)
        assert resident() - before > 2**27
    assert resident() - before < 2**27


def test_a_failure_is_reported_and_a_peers_is_not_ours(
    tmp_path: Path, only: Callable[..., registry.Op]
) -> None:
    def fail(inputs: dict[str, Any]) -> Any:
        raise RuntimeError("no such\nthing")

    only({"right": lambda i: i["x"], "peer": fail}, versions={"peer": "trl"})
    assert run_rows(tmp_path)["peer"]["failed"] == "RuntimeError: no such"
    registry._ops.clear()
    only({"right": lambda i: i["x"], "ours": fail})
    assert "p50_ms" in run_rows(tmp_path, status=1)["right"]
    registry._ops.clear()
    only({"first": fail, "ours": lambda i: i["x"]})
    assert "nothing to check it against" in run_rows(tmp_path, status=1)["ours"]["failed"]


def test_options_choose_and_headlines_come_first(
    tmp_path: Path, only: Callable[..., registry.Op], capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"build": lambda d: {"x": torch.ones(3)}, "bytes_moved": 24}
    cases = (
        registry.Case(name="small", **about),
        registry.Case(name="big", headline=True, **about),
        registry.Case(name="half", dtype="float16", **about),
        registry.Case(name="on a gpu", devices=("cuda",), **about),
    )
    only({"one": lambda i: i["x"], "two": lambda i: i["x"]}, cases=cases)

    def measured(*arguments: str) -> list[tuple[str, str]]:
        runner.main(["--seconds", "0.001", "--out", str(tmp_path), *arguments])
        rows = json.loads((tmp_path / "toy.json").read_text())["rows"]
        return [(row["case"], row["provider"]) for row in rows if row["provider"] == "two"]

    assert [case for case, _ in measured()] == ["big", "small", "half"]
    assert [case for case, _ in measured("--headline")] == ["big"]
    assert [case for case, _ in measured("--dtype", "float16")] == ["half"]
    assert [case for case, _ in measured("--case", "ma")] == ["small"]
    assert measured("--provider", "one") == []
    capsys.readouterr()
    runner.main(["--seconds", "0.001", "--out", str(tmp_path), "--budget", "1e-9"])
    assert "the time of --budget is spent" in capsys.readouterr().out


def test_inputs_are_prepared_once_and_providers_are_added(
    tmp_path: Path, only: Callable[..., registry.Op]
) -> None:
    prepared: list[int] = []

    def prepare(inputs: dict[str, Any]) -> dict[str, Any]:
        prepared.append(1)
        return {"y": inputs["x"]}

    only({"first": lambda i: i["x"]})
    registry.extend(
        "toy", {"peer": lambda i: i["y"]}, prepare={"peer": prepare}, notes={"peer": "padded"}
    )
    assert run_rows(tmp_path)["peer"]["note"] == "padded"
    assert len(prepared) == 1
    with pytest.raises(ValueError, match="has peer already"):
        registry.extend("toy", {"peer": lambda i: i["y"]})


def test_copy_bandwidth_is_that_of_a_copy() -> None:
    assert 1e8 < copy_bandwidth("cpu") < 1e13


def test_absent_peers_are_named_with_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each peer stands in its op, with the package that its version is looked up by."""
    from bench.peers import installed

    assert {"trl", "liger"} <= set(registry.ops(("linear_grpo_loss",))[0].providers)
    for op in registry.ops():
        assert set(op.versions) <= set(op.why_not)

    def missing(name: str) -> str:
        raise installed.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed.importlib.metadata, "version", missing)
    why_not = installed.why_not.__wrapped__
    assert why_not("trl") == "trl is absent; `make bench-deps` installs it"
    assert why_not("verl") == "verl is absent"


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no op named pakcing; there are "):
        runner.main(["--op", "pakcing", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(registry.ops(("packing",))[0])
    case = registry.ops(("packing",))[0].cases[0]
    with pytest.raises(ValueError, match="several cases named n=64"):
        registry.register(registry.Op(name="other", cases=(case, case), providers={}))


def test_tables_and_pictures_name_both_sides(
    tmp_path: Path, only: Callable[..., registry.Op], capsys: pytest.CaptureFixture[str]
) -> None:
    only(
        {
            "eager": lambda i: i["x"],
            "cpu": lambda i: i["x"].clone(),
            "liger": lambda i: i["x"] + 0,
            "triton": lambda i: i["x"],
        },
        versions={"liger": "numpy"},
        why_not={"triton": lambda: "it needs a | GPU"},
    )
    run_rows(tmp_path)
    capsys.readouterr()
    assert table.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"eager (torch {torch.__version__})" in said
    assert "liger (numpy " in said
    assert "not run: it needs a / GPU" in said
    assert "commit " in said.splitlines()[-1]
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "docs")]) == 0
    for name in ("speed.png", "floor.png"):
        assert (tmp_path / "docs" / name).read_bytes().startswith(b"\x89PNG")
    assert "triton" in table.terminal(table.load(tmp_path))
    assert table.terminal([]) == "no results"


def test_results_are_handed_over_and_shown(
    tmp_path: Path,
    only: Callable[..., registry.Op],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only({"first": lambda i: i["x"]})
    run_rows(tmp_path / "device")
    monkeypatch.setenv("OUT", str(tmp_path / "back"))
    gpu.hand_over(tmp_path / "device")
    assert json.loads((tmp_path / "back" / "results.json").read_text())["toy"]["rows"]
    assert (tmp_path / "back" / "results.tar.gz").stat().st_size > 100
    gpu.show(tmp_path / "device")
    assert capsys.readouterr().out.splitlines()[-1].startswith("toy ")


@pytest.mark.gpu
def test_replayed_graphs_are_timed_on_a_gpu(only: Callable[..., registry.Op]) -> None:
    op = only(
        {"reference": lambda i: 2 * i["x"], "reads back": lambda i: 2 * i["x"] * i["x"][0].item()},
        case={"build": lambda d: {"x": torch.ones(2**16, device=d)}, "graph": True},
        no_graph={"reads back": "it reads back"},
    )
    effort = measure.Effort(device="cuda", seconds=0.05, least=3)
    rows = {row["provider"]: row for row in measure.measure(op, op.cases[0], effort)}
    assert 0 < rows["reference"]["graph_p50_ms"] < 0.1
    assert "graph_failed" in rows["reads back"]
