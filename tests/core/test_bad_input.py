"""Bad input: each ends with one clear sentence that names the file, line, field or option."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.tiny import grpo_command as grpo
from tests.tiny import sft_command as sft
from tests.tiny import write_lines
from visa_core import cli
from visa_core.data import schema
from visa_core.models.detector import Detector
from visa_core.training import checkpoint

EXAMPLE = tiny.examples(4)[0]
SINGLE = ("--query", EXAMPLE.query, "--response", EXAMPLE.response)
FULL = (*SINGLE, "--target", "security=1")
TASK = {key: value for key, value in asdict(EXAMPLE).items() if value is not None}

Complaint = Callable[..., str]


def test_malformed_jsonl(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl", ['{"query": "a"', "[1]"])
    said = complaint(*sft(small_system / "rewriter", tmp_path / "o", "--data", f"jsonl:{path}"))
    assert f"{path}:1: not valid JSON" in said
    assert f"{path}:2: expected a JSON object, got list" in said
    assert "no usable record (2 set aside" in said


def test_one_malformed_line_is_set_aside_with_its_place(
    small_system: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "mixed.jsonl", [TASK, "{oops", TASK])
    command = sft(small_system / "rewriter", tmp_path / "o", "--data", f"jsonl:{path}")
    assert cli.main([str(argument) for argument in command]) == 0
    assert f"{path}:2: not valid JSON" in caplog.text and "set aside 1 of 3" in caplog.text


def test_dirty_label_of_fulcra(complaint: Complaint, tmp_path: Path) -> None:
    row = {"dialogue": "Human: a?\nBob: b.", "value_types": ["conformity: 1+"]}
    path = write_lines(tmp_path / "fulcra.jsonl", [row])
    options = ("--backbone", "builtin", "--out", tmp_path / "o")
    said = complaint("train", "detector", "--data", f"fulcra:{path}", *options)
    assert f"{path}:1: label 'conformity: 1+' in 'value_types'" in said


def test_dirty_label_of_entailment(complaint: Complaint, tmp_path: Path) -> None:
    pair = {"premise": "a", "hypothesis": "b", "label": "entails"}
    path = write_lines(tmp_path / "nli.jsonl", [pair])
    said = complaint("train", "nli", "--data", f"jsonl:{path}", "--out", tmp_path / "o")
    assert f"{path}:1: field 'label' must be one of entailment, neutral, contradiction" in said


def test_missing_column_of_a_table(complaint: Complaint, tmp_path: Path) -> None:
    arguments = write_lines(tmp_path / "arguments.tsv", ["Argument ID\tConclusion\tPremise"])
    labels = write_lines(tmp_path / "labels.tsv", ["Argument ID\tFace"])
    data = ("--data", f"valueeval23:{arguments},{labels}")
    said = complaint("train", "detector", *data, "--backbone", "builtin", "--out", tmp_path / "o")
    assert str(arguments) in said and "Stance" in said


def test_missing_field_of_a_row(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    row = {key: value for key, value in TASK.items() if key != "shift"}
    path = write_lines(tmp_path / "tasks.jsonl", [row])
    options = ("--backbone", "builtin", "--out", tmp_path / "o")
    said = complaint("train", "translator", "--data", f"jsonl:{path}", *options)
    assert f"{path}:1: field 'shift' is missing" in said
    without = write_lines(tmp_path / "no-reference.jsonl", [TASK | {"reference": None}])
    said = complaint(*sft(small_system / "rewriter", tmp_path / "o", "--data", f"jsonl:{without}"))
    assert f"{without}:1: field 'reference' is missing" in said


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({"securty": 1}, "unknown value 'securty' in space 'schwartz'. Did you mean security?"),
        ({"security": 1.25}, "value 'security' must be in [-1, 1], got 1.25"),
    ],
)
def test_wrong_target_in_a_file_and_in_the_command(
    complaint: Complaint, small_system: Path, tmp_path: Path, target: dict, reason: str
) -> None:
    path = write_lines(tmp_path / "tasks.jsonl", [TASK | {"target": target}])
    said = complaint(*sft(small_system / "rewriter", tmp_path / "o", "--data", f"jsonl:{path}"))
    assert f"{path}:1: field 'target': {reason}" in said
    option = ",".join(f"{name}={value}" for name, value in target.items())
    said = complaint("rewrite", "--model", small_system, *SINGLE, "--target", option)
    assert f"target: {reason}" in said


def test_empty_response(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    options = ("--model", small_system, "--query", "a?", "--response", "", "--target", "power=1")
    assert "field 'response' is empty" in complaint("rewrite", *options)
    path = write_lines(tmp_path / "tasks.jsonl", [TASK | {"response": " "}])
    said = complaint(*grpo(small_system, path, tmp_path / "o"))
    assert f"{path}:1: field 'response' is empty" in said


def test_completion_longer_than_the_limit(
    complaint: Complaint, small_system: Path, tmp_path: Path
) -> None:
    limit = ("--data", "embedded:4", "--max-completion", "3")
    said = complaint(*sft(small_system / "rewriter", tmp_path / "o", *limit))
    assert "embedded-0-0: the completion has" in said
    assert "more than max_completion = 3: shorten it, or raise --max-completion" in said


def test_prompt_longer_than_the_limit(
    complaint: Complaint, small_system: Path, tmp_path: Path
) -> None:
    tasks = write_lines(tmp_path / "tasks.jsonl", [TASK | {"id": "long-one"}])
    said = complaint(*grpo(small_system, tasks, tmp_path / "o", "--max-prompt", "9"))
    assert "long-one: the prompt has" in said and "max_prompt = 9" in said
    assert "raise --max-prompt" in said


def test_output_below_a_file(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    """A folder that cannot be made, for root too."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    said = complaint(*sft(small_system / "rewriter", out, "--data", "embedded:4"))
    assert f"cannot write the run folder {out}" in said and "--out" in said
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": "a?", "response": "b"}])
    options = ("--model", small_system, "--input", rows, "--output", out)
    assert f"{out}: cannot be written" in complaint("detect", *options)


def test_output_that_is_a_device(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": "a?", "response": "b"}])
    options = ("--model", small_system, "--input", rows, "--output", "/dev/null")
    assert "--output /dev/null is no regular file" in complaint("detect", *options)


def test_input_that_is_missing(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    rows = tmp_path / "absent.jsonl"
    options = ("--model", small_system, "--input", rows, "--output", tmp_path / "out.jsonl")
    assert f"{rows}: cannot be read: No such file" in complaint("detect", *options)
    assert not (tmp_path / "out.jsonl").exists()


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_while_rows_are_written(
    complaint: Complaint, small_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": "a?", "response": "b"}])
    output = write_lines(tmp_path / "out.jsonl", ["as it was"])
    monkeypatch.setattr(schema.os, "fsync", no_space)
    options = ("--model", small_system, "--input", rows, "--output", output)
    said = complaint("detect", *options)
    assert f"{output}: cannot be written: No space left on device" in said
    assert output.read_text() == "as it was\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_full_disk_while_the_result_is_written(
    complaint: Complaint, small_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_sync", no_space)
    out = tmp_path / "o"
    said = complaint(*sft(small_system / "rewriter", out, "--data", "embedded:4"))
    assert "No space left on device. Free space or choose a writable folder with --out" in said
    assert not (out / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] in ([], ["o"]), "nothing half-written is left"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_while_metrics_are_written(
    complaint: Complaint, small_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes to a device that is always full, from the first step on."""
    from visa_core.training.run import Run

    prepare = Run._prepare_folder

    def prepare_full(run: Run, *arguments: object) -> None:
        prepare(run, *arguments)
        run.metrics_path.unlink()
        run.metrics_path.symlink_to("/dev/full")

    monkeypatch.setattr(Run, "_prepare_folder", prepare_full)
    out = tmp_path / "o"
    said = complaint(*sft(small_system / "rewriter", out, "--data", "embedded:4"))
    assert f"cannot append to {out / 'metrics.jsonl'}" in said
    assert "No space left on device" in said and "--resume" in said


def test_a_limit_of_the_system_while_a_checkpoint_is_written(
    repo: Path, small_system: Path, tmp_path: Path
) -> None:
    """The kernel itself refuses to write on: the sentence names the checkpoint."""
    out = tmp_path / "o"
    command = sft(small_system / "rewriter", out, "--data", "embedded:4", "--save-every", "1")
    command[command.index("--steps") + 1] = "3"
    paths = f"{repo}:{repo}/kernels:{repo}/trainers"

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-m", "visa_core.cli", *map(str, command)],
        # without bytecode: the limit would leave truncated .pyc files that break later imports
        env={
            "PYTHONPATH": paths,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert f"cannot write {out / 'checkpoints' / 'step-00000001'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((out / "checkpoints").iterdir()) == []


def test_nan_rewards(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    detector = Detector.from_pretrained(small_system / "detector")
    with torch.no_grad():
        detector.vector_head.score.bias.fill_(float("nan"))
    detector.save_pretrained(tmp_path / "detector")
    tasks = write_lines(tmp_path / "tasks.jsonl", [TASK])
    out = tmp_path / "o"
    said = complaint(*grpo(small_system, tasks, out, "--detector", tmp_path / "detector"))
    assert "not finite" in said or "NaN" in said
    assert "detector" in said
    assert (out / "metrics.jsonl").read_text() == "", "no step was taken"


def test_nan_of_the_fact_analyzer(
    complaint: Complaint, small_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visa_core.models.fact_analyzer import FactAnalyzer

    clean = FactAnalyzer.probabilities
    monkeypatch.setattr(
        FactAnalyzer, "probabilities", lambda self, logits: clean(self, logits) * float("nan")
    )
    tasks = write_lines(tmp_path / "tasks.jsonl", [TASK])
    out = tmp_path / "o"
    said = complaint(*grpo(small_system, tasks, out))
    assert "fact analyzer returned NaN or infinite scores" in said
    assert (out / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "sft", "--model", "m", "--data", "d", "--out", "o", "--epoch", "3"], "--epoch"),
        (["rewrite", "--model", "m", "--temprature", "0"], "--temprature"),
        (["quickstart", "--fast"], "--fast"),
        (["train", "ppo"], "ppo"),
    ],
)
def test_unknown_option(complaint: Complaint, arguments: list[str], named: str) -> None:
    said = complaint(*arguments)
    assert "Unrecognized options" in said and named in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "sft", "--model", "m", "--out", "o"], "--data"),
        (["train", "sft", "--model", "m", "--data", "d", "--out", "o", "--lr", "-1"], "--lr must"),
        (["train", "sft", "--model", "m", "--data", "d", "--out", "o", "--lr", "x"], "--lr"),
        (["rewrite", "--model", "m", "--query", "q"], "give --query and --response"),
        (["rewrite", "--model", "m", *SINGLE], "either --instruction or --target"),
        (["rewrite", "--model", "m", "--input", "i"], "--input needs --output"),
        (["rewrite", "--model", "m", "--output", "o"], "--output needs --input"),
        (["rewrite", "--model", "m", "--query", "q", "--input", "i"], "exclude each other"),
        (["rewrite", "--model", "m", *FULL, "--temperature", "-1"], "--temperature must"),
        (["evaluate", "rewriter", "--model", "m", "--data", "d", "--n", "0"], "--n must"),
    ],
)
def test_option_out_of_range(complaint: Complaint, arguments: list[str], message: str) -> None:
    assert message in complaint(*arguments)


def test_unknown_kind_of_data(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    said = complaint(*sft(small_system / "rewriter", tmp_path / "o", "--data", "fulcrum:x"))
    assert "--data 'fulcrum:x': unknown kind of data 'fulcrum'; known: fulcra:PATH" in said


def test_no_such_device(complaint: Complaint, small_system: Path) -> None:
    said = complaint("rewrite", "--model", small_system, *FULL, "--device", "gpu")
    assert "--device 'gpu' is no device: give auto, cpu or cuda" in said
