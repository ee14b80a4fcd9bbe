"""The bench of a whole GRPO step: FLOPs by hand, clocks, ratios, and one tiny run beside TRL."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from bench.e2e import __main__ as command
from bench.e2e import gpu, picture, scaling, summary, worker
from bench.e2e.cases import CASES, Case, Shape, step_flops
from bench.e2e.phases import PHASES, Phases
from bench.e2e.turns import ProviderFailed, last_error

TINY = Shape(
    hidden=32, layers=1, heads=2, key_heads=1, head_size=16, intermediate=64, vocabulary=128
)


def case_of(shape: Shape, prompts: int, group: int, prompt: int, completion: int) -> Case:
    return Case(
        shape=shape,
        prompts=prompts,
        group=group,
        prompt_tokens=prompt,
        completion_tokens=completion,
        micro_rows=prompts * group,
        dtype="float32",
        device="cpu",
    )


def test_flops_by_hand() -> None:
    """Weights of a layer 2 x (2 + 2 + 2 + 2 + 3 x 3) = 34, over 4 + 6 tokens; head 2 x 5 over 6;
    pairs of tokens 8 in the prompt and 3 x (4 + 1.5) in each of two completions, by 2 x 2 x 2."""
    shape = Shape(
        hidden=2, layers=1, heads=1, key_heads=1, head_size=2, intermediate=3, vocabulary=5
    )
    forward = 2 * 34 * 10 + 2 * 10 * 6 + 8 * (8 + 33)
    assert step_flops(case_of(shape, 1, 2, 4, 3), 6) == 4 * forward == 4512


def test_a_moment_counts_for_the_innermost_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 100.0, "cpu": 10.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["cpu"])

    def pass_(seconds: float) -> None:
        now["wall"] += seconds
        now["cpu"] += seconds / 2

    class Model(torch.nn.Module):
        def forward(self) -> None:
            pass_(4.0)

    model = Model()
    phases = Phases("cpu")
    phases.watch(model, "logprobs", "loss_backward")
    pass_(1.0)
    with phases.phase("rollout"):
        pass_(2.0)
        model()
        with phases.phase("score"):
            pass_(8.0)
    with phases.phase("loss_backward"):
        model()
        pass_(16.0)
    wanted = dict.fromkeys(PHASES, 0.0)
    wanted |= {"other": 1, "rollout": 6, "score": 8, "logprobs": 4, "loss_backward": 16}
    assert phases.restart() == (wanted, 17.5)
    assert phases.restart() == (dict.fromkeys(PHASES, 0.0), 0.0)


def step(rollout: float, backward: float, cpu: float, tokens: int = 50) -> dict[str, Any]:
    phases = dict.fromkeys(PHASES, 0.0) | {"rollout": rollout, "loss_backward": backward}
    return {"phases": phases, "cpu": cpu, "tokens": tokens}


def test_ratios_are_of_neighbouring_steps() -> None:
    """Both slow down tenfold in the second step; TRL's time is 3, 4 and 6 times ours."""
    found = summary.Found(
        steps={
            "ours-hf": [step(1, 1, 2), step(10, 10, 2), step(1, 1, 2)],
            "trl": [step(4, 2, 8), step(60, 20, 8), step(8, 4, 8)],
        },
        memory={
            "ours-hf": {"peak_bytes": 2**20, "process_bytes": 2**22},
            "trl": {"peak_bytes": 5 * 2**20, "process_bytes": None},
        },
        missing={"trl-vllm": "vllm is absent"},
    )
    case = case_of(TINY, 2, 4, 6, 5)
    result = summary.summary(case, found, peak_flops=step_flops(case, 50))
    ratio = result["ratios"]["trl / ours-hf"]
    assert ratio["step"] == [3, 4, 6]
    assert ratio["training"] == [2, 2, 4]
    assert ratio["cpu"] == [4, 4, 4]
    assert ratio["peak_mib"] == 5 and "process_mib" not in ratio
    ours = result["providers"]["ours-hf"]
    assert (ours["step_s"], ours["tokens_per_s"], ours["flops_share"]) == (2, 25, 0.5)
    text = "\n".join(summary.lines("tiny", result))
    assert "| ours-hf | 2.00 | 2.00 | 1.00 | 0.00 | 0.00 | 1.00 |" in text
    assert "trl / ours-hf: 4.00 times the time of a step (3.00 to 6.00)" in text
    assert "trl-vllm: not run, vllm is absent" in text


class FakeWorker:
    def __init__(self, name: str, good: int, log: list[str], expired: bool = False) -> None:
        self.name, self.good, self.log, self.expired, self.killed = name, good, log, expired, False

    def start(self) -> dict[str, Any]:
        return {}

    def step(self) -> dict[str, Any]:
        if self.good == 0:
            raise ProviderFailed(f"{self.name} broke")
        self.good -= 1
        self.log.append(self.name)
        return step(1, 1, 1)

    def end(self) -> dict[str, Any]:
        return {"peak_bytes": 1}

    def kill(self) -> None:
        self.killed = True


def test_steps_take_turns_and_a_failure_stops_no_other() -> None:
    log: list[str] = []
    workers = [
        FakeWorker("ours-hf", 9, log),
        FakeWorker("trl", 2, log),
        FakeWorker("trl-vllm", 2, log, expired=True),
    ]
    found = summary.Found()
    command.take_turns(workers, found, 2)  # type: ignore[arg-type]
    assert log == ["ours-hf", "trl", "trl-vllm"] * 2 + ["ours-hf"]
    assert found.missing == {"trl": "trl broke"}
    assert {name: len(steps) for name, steps in found.steps.items()} == {
        "ours-hf": 2,
        "trl-vllm": 1,
    }
    assert found.memory == {"ours-hf": {"peak_bytes": 1}}
    assert all(one.killed for one in workers)


def test_the_end_of_a_traceback() -> None:
    text = "Traceback:\n  File x\na.b.ValidationError: 1 error\n  Value error, no GPU\nsee docs\n"
    assert last_error(text) == "a.b.ValidationError: 1 error Value error, no GPU see docs"
    assert last_error("a\nKilled\n") == "Killed"
    assert last_error("") == "nothing"


@pytest.mark.slow
def test_a_tiny_step_of_ours_and_of_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes: both sample and train on what the case asks for."""
    monkeypatch.setitem(CASES, "tiny", case_of(TINY, 2, 4, 6, 5))
    options = ["--case", "tiny", "--steps", "2", "--threads", "1", "--out", str(tmp_path)]
    assert command.main([*options, "--providers", "ours-hf", "trl"]) == 0
    result = json.loads((tmp_path / "e2e-tiny.json").read_text())
    ours = result["providers"]["ours-hf"]
    assert ours["phases_s"]["rollout"] > 0 and ours["phases_s"]["loss_backward"] > 0
    assert ours["phases_s"]["optimizer"] > 0 and 8 <= ours["tokens"] <= 2 * 4 * 5
    reason = worker.why_not("trl")
    if reason is None:
        theirs = result["providers"]["trl"]
        assert theirs["phases_s"]["rollout"] > 0 and 8 <= theirs["tokens"] <= 2 * 4 * 5
        assert theirs["phases_s"]["logprobs"] > 0 and result["ratios"]["trl / ours-hf"]["step"]
    else:
        assert result["missing"] == {"trl": reason}
    assert "| ours-hf |" in capsys.readouterr().out
    assert picture.main([str(tmp_path), "--out", str(tmp_path / "e2e.png")]) == 0
    pixels = imread(tmp_path / "e2e.png")
    assert pixels.shape[1] == 1200 and pixels[..., :3].std() > 0.05


def test_a_line_and_what_it_explains() -> None:
    """Through (1, 1), (2, 2), (3, 6): slope 2.5, start -2; of 14 squared 12.5 are explained."""
    line = scaling.fitted([1, 2, 3], [1.0, 2.0, 6.0])
    assert line["slope"] == pytest.approx(2.5) and line["start"] == pytest.approx(-2)
    assert line["r2"] == pytest.approx(12.5 / 14)


def test_memory_of_the_head_does_not_follow_the_sequences() -> None:
    """16 times as many sequences, less than three times the scratch: logits of all would be 16."""
    few, many = scaling.scratch_mib(16, 4096), scaling.scratch_mib(256, 4096)
    if few is None or many is None:
        pytest.skip("this system does not tell a process's memory")
    assert many < 3 * max(few, 16 * scaling.LENGTH * 4096 * 4 / 2**20)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 0
    assert "sees no CUDA device" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.parse(["--case", "qwen3-0.6b"])
    assert "sees no CUDA device" in capsys.readouterr().err


def test_the_gpu_subset_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.command(99.0, Path("out"))[-2:] == ["--steps", "3"]
    monkeypatch.setenv("GPU_E2E", "--case qwen3-4b")
    assert gpu.command(99.0, Path("out"))[2:] == [
        *("bench.e2e", "--budget", "99", "--out", "out", "--case", "qwen3-4b")
    ]
