"""The benchmarks' other commands: two commits, profiles, a GPU machine."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import base, gpu, profile


def test_commits_are_compared_within_turns() -> None:
    """Both sides slow down in the second turn: the ratio of each turn holds."""

    def turn(milliseconds: float, provider: str = "cpu") -> dict[Any, dict[str, Any]]:
        return {("toy", "x", provider): {"p50_ms": milliseconds}}

    turns = {"base": [turn(2.0) | turn(1.0, "old"), turn(20.0)], "this": [turn(1.0), turn(10.0)]}
    (row,) = base._compare_rows(turns)
    assert row["times_faster"] == [2.0, 2.0, 2.0]
    assert (row["base_ms"], row["this_ms"]) == (11.0, 5.5)


def test_a_profile_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["packing", "--case", "n=64", "--provider", "reference", "--device", "cpu"]
    assert profile.main([*arguments, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "packing n=64 reference" for event in events)
    with pytest.raises(ValueError, match="no provider 'nobody'"):
        profile.main(["packing", "--provider", "nobody", "--device", "cpu"])
    with pytest.raises(ValueError, match="packing has no case"):
        profile.main(["packing", "--case", "n=65", "--device", "cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_one_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 0
    assert "sees no CUDA device" in capsys.readouterr().out


def test_the_tree_and_given_wheels_are_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU_WHEELS", str(tmp_path))
    assert gpu.unpack_wheels(tmp_path / "to") is None
    assert "holds no wheel" in capsys.readouterr().out
    environment = gpu.tree_environment(tmp_path)
    code = "import visa_kernels, bench.registry"
    assert gpu.run([sys.executable, "-c", code], environment, 60) == 0
    assert gpu.run([sys.executable, "-c", "import time; time.sleep(9)"], environment, 0.3) == 124
