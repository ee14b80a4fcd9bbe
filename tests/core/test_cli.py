"""Every command, run as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from visa_core import cli
from visa_core.commands.options import QuickstartOptions
from visa_core.config import DetectorConfig, GRPOConfig
from visa_core.models.detector import Detector
from visa_core.models.rewriter import Rewriter
from visa_core.values import SCHWARTZ

EXAMPLE = tiny.examples(4)[0]
SINGLE = ["--query", EXAMPLE.query, "--response", EXAMPLE.response]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def visa(*arguments: str) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_help_is_read_without_torch() -> None:
    code = (
        "import sys\nfrom visa_core.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    print('torch' in sys.modules, 'transformers' in sys.modules, end.code)"
    )
    for arguments in (["--help"], ["train", "grpo", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False False 0"
    assert "--reward.w-val" in done.stdout and "--group-size" in done.stdout


def test_module_and_command_are_one(repo: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "visa_core.cli", "--help"],
        env={"PATH": "", "PYTHONPATH": f"{repo}:{repo}/kernels:{repo}/trainers"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("quickstart", "train", "evaluate", "rewrite", "detect", "doctor"):
        assert name in done.stdout


def test_docstrings_are_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        visa("train", "grpo", "--help")
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Completions of a prompt (G). (default: 8)" in words
    assert "Weight of the cosine between the rewrite's values and the target." in words


def test_rewrite_prints_text_vectors_and_consistency(
    small_system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visa("rewrite", "--model", small_system, *SINGLE, "--target", "security=1") == 0
    out = capsys.readouterr().out
    assert "before  target   after" in out and "consistency 0." in out
    line = next(line for line in out.splitlines() if line.startswith("security"))
    assert line.split()[2] == "+1.00"


def test_rewrite_json_by_instruction(
    small_system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = visa(
        "rewrite", "--model", small_system, *SINGLE, "--instruction", "be safer", "--json"
    )
    row = json.loads(capsys.readouterr().out)
    assert status == 0 and row["rewrite"].strip()
    for name in ("values_before", "target_values", "values_after"):
        assert tuple(row[name]) == SCHWARTZ.names
    assert row["consistency"] == pytest.approx((2 * row["fwd"] + row["bwd"]) / 3)


def test_rewrite_of_a_file_keeps_rows_and_sets_bad_ones_aside(
    small_system: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_rows(
        tmp_path / "in.jsonl",
        [
            {
                "query": "a?",
                "response": EXAMPLE.response,
                "target": "security=1",
                "id": 7,
                "x": None,
            },
            {"query": "b?", "response": EXAMPLE.response, "target": {"securty": 1}},
            {"query": "c?", "response": "long " * 300, "target": {"security": 1}},
            {"query": "d?", "response": EXAMPLE.response, "instruction": "be kinder", "more": [1]},
            {"query": "e?", "response": "", "instruction": "be kinder"},
        ],
    )
    with source.open("a") as file:
        file.write("{not json\n")
    output = tmp_path / "out.jsonl"
    assert visa("rewrite", "--model", small_system, "--input", source, "--output", output) == 0
    first, second = read_rows(output)
    assert first["id"] == 7 and first["x"] is None and first["target"] == "security=1"
    assert first["target_values"]["security"] == 1
    assert second["query"] == "d?" and second["more"] == [1] and second["rewrite"]
    rejected = {row["line"]: row["reason"] for row in read_rows(tmp_path / "out.rejected.jsonl")}
    assert sorted(rejected) == [2, 3, 5, 6]
    assert "securty" in rejected[2] and "max_prompt" in rejected[3]
    assert "'response' is empty" in rejected[5] and "not valid JSON" in rejected[6]
    for line in rejected:
        assert f"{source}:{line}: " in caplog.text


def test_rewrites_of_a_file_equal_single_ones(
    small_system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"query": e.query, "response": e.response, "target": e.target} for e in tiny.examples(5)
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    options = ("--output", tmp_path / "out.jsonl", "--batch-size", "2", "--json")
    assert visa("rewrite", "--model", small_system, "--input", source, *options) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 5
    last = read_rows(tmp_path / "out.jsonl")[-1]
    target = ",".join(f"{name}={value}" for name, value in rows[-1]["target"].items())
    arguments = ("--query", rows[-1]["query"], "--response", rows[-1]["response"])
    visa("rewrite", "--model", small_system, *arguments, "--target", target, "--json")
    assert json.loads(capsys.readouterr().out)["rewrite"] == last["rewrite"]


def test_a_file_without_a_good_row_fails(small_system: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"query": "a?", "response": "b"}])
    output = tmp_path / "out.jsonl"
    assert visa("rewrite", "--model", small_system, "--input", source, "--output", output) == 1
    assert read_rows(output) == []


def test_rejected_rows_of_an_earlier_run_go(small_system: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    options = ("--model", small_system, "--output", output)
    bad = write_rows(tmp_path / "bad.jsonl", [{"query": "a?"}])
    good = write_rows(tmp_path / "good.jsonl", [{"query": "a?", "response": "b"}])
    assert visa("detect", *options, "--input", bad) == 1
    assert (tmp_path / "out.rejected.jsonl").exists()
    assert visa("detect", *options, "--input", good) == 0
    assert not (tmp_path / "out.rejected.jsonl").exists()


@pytest.mark.parametrize("part", ["", "detector"])
def test_detect_adds_values_and_keeps_the_rest(
    small_system: Path, tmp_path: Path, part: str
) -> None:
    rows = [
        {"query": e.query, "response": e.response, "note": {"n": i}}
        for i, e in enumerate(tiny.examples(5))
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    output = tmp_path / "deep" / "out.jsonl"
    options = ("--input", source, "--output", output)
    assert visa("detect", "--model", small_system / part, *options) == 0
    found = read_rows(output)
    detector = Detector.from_pretrained(small_system / "detector")
    values = detector.predict([r["query"] for r in rows], [r["response"] for r in rows])
    assert [{k: v for k, v in row.items() if k != "values"} for row in found] == rows
    written = torch.tensor([list(row["values"].values()) for row in found])
    assert torch.allclose(written, values, atol=1e-4)
    assert tuple(found[0]["values"]) == SCHWARTZ.names


def test_input_may_be_output(small_system: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"query": "a?", "response": "b"}])
    assert visa("detect", "--model", small_system, "--input", path, "--output", path) == 0
    assert "values" in read_rows(path)[0]


def test_evaluate_detector_json(
    small_system: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_data / "valueeval23"
    files = f"{folder}/arguments-validation.tsv,{folder}/labels-validation.tsv"
    data = ("--data", "embedded:12", "--data", f"valueeval23:{files}")
    assert visa("evaluate", "detector", "--model", small_system, *data, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert {"macro_f1", "per_category_f1", "sign_accuracy", "cosine"} <= set(scores)
    assert scores["n"] > 1000 and scores["all_ones_macro_f1"] == pytest.approx(0.287, abs=5e-4)
    assert scores["macro_f1"] is None, "a detector without category head has none"


def test_evaluate_detector_for_people(
    small_system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", small_system / "detector", "--data", "embedded:12")
    assert visa("evaluate", "detector", *options) == 0
    rows = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert rows["n"] == "12" and rows["macro_f1"] == "-" and 0 <= float(rows["sign_accuracy"]) <= 1


@pytest.mark.parametrize("name", ["rewriter", "rewrites"])
def test_evaluate_rewriter_with_baselines_and_report(
    small_system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    options = ("--data", "embedded:20", "--n", "6", "--greedy", "--json", "--out", tmp_path / "r")
    vanilla = ("--vanilla", small_system / "rewriter", "--temperature", "0")
    assert visa("evaluate", name, "--model", small_system, *options, *vanilla) == 0
    record = json.loads(capsys.readouterr().out)
    methods = record["methods"]
    assert list(methods) == ["copy", *("rewriter", "rewriter_greedy", "vanilla", "vanilla_greedy")]
    assert all(summary["n"] == 6 for summary in methods.values())
    assert methods["rewriter"]["l2_mean"] == methods["vanilla_greedy"]["l2_mean"]
    assert methods["copy"]["true_facts_kept"] == 1.0
    assert json.loads((tmp_path / "r/report.json").read_text())["methods"] == methods
    assert {p.name for p in (tmp_path / "r").glob("*.png")} == {"tradeoff.png", "values.png"}
    assert "| copy | 6 |" in (tmp_path / "r/report.md").read_text()


def test_evaluate_rewriter_sets_long_records_aside(
    small_system: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = {"query": "a?", "response": "word " * 300, "instruction": "x", "target": {"power": 1}}
    rows = [dataclasses.asdict(e) for e in tiny.examples(3)]
    source = write_rows(tmp_path / "in.jsonl", [*rows, long])
    options = ("--data", f"jsonl:{source}", "--targets", "recorded", "--temperature", "0")
    assert visa("evaluate", "rewriter", "--model", small_system, *options) == 0
    assert "| copy | 3 |" in capsys.readouterr().out
    assert "1 of 4 records set aside; the first: record 4: the prompt has" in caplog.text


TRAINING = {
    "detector": ["--backbone", "builtin", "--hidden-size", "16", "--layers", "1", "--epochs", "1"],
    "translator": [
        "--backbone",
        "builtin",
        "--hidden-size",
        "16",
        "--layers",
        "1",
        "--epochs",
        "1",
    ],
    "nli": ["--hidden-size", "16", "--layers", "1", "--epochs", "1", "--held-out", "4"],
}


@pytest.mark.parametrize("stage", TRAINING)
def test_train_a_scorer(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / stage
    options = ("--data", "embedded:48", "--out", out, "--device", "cpu", "--batch-size", "16")
    assert visa("train", stage, *options, *TRAINING[stage]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert (out / "config.json").is_file() and not (out / "checkpoints").exists()
    steps = [row["step"] for row in read_rows(out / "metrics.jsonl")]
    assert steps == list(range(len(steps))) and len(steps) >= 2


def test_size_of_the_builtin_backbone_is_obeyed(tmp_path: Path) -> None:
    options = ("--data", "embedded:16", "--out", tmp_path / "d", "--device", "cpu")
    assert visa("train", "detector", *options, *TRAINING["detector"]) == 0
    assert Detector.from_pretrained(tmp_path / "d").encoder.hidden_size == 16


def test_train_the_rewriter_and_resume_what_is_finished(
    small_system: Path,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = ["--data", f"jsonl:{tasks}", "--device", "cpu", "--precision", "fp32", "--steps", "2"]
    shared += ["--max-prompt", "160", "--max-completion", "96"]
    sft, grpo = tmp_path / "sft", tmp_path / "grpo"
    model = ["--model", small_system / "rewriter"]
    assert visa("train", "sft", *shared, *model, "--out", sft, "--batch-size", "4") == 0
    command = ["train", "grpo", *shared, "--model", sft, "--out", grpo, "--batch-size", "8"]
    command += ["--accumulation", "1", "--group-size", "4", "--reward.w-sem", "0.5"]
    for name in ("detector", "translator", "fact_analyzer"):
        command += [f"--{name.replace('_', '-')}", small_system / name]
    assert visa(*command) == 0
    assert json.loads((grpo / "run.json").read_text())["config"]["reward"]["w_sem"] == 0.5
    assert Rewriter.from_pretrained(grpo).max_completion == 96
    weights = (grpo / "model.safetensors").read_bytes()
    capsys.readouterr()
    caplog.set_level("INFO")
    assert visa(*command, "--resume") == 0
    assert capsys.readouterr().out.strip() == str(grpo)
    assert "nothing is left to resume" in caplog.text
    assert (grpo / "model.safetensors").read_bytes() == weights
    assert len(read_rows(grpo / "metrics.jsonl")) == 2
    assert visa(*command, "--resume", "--lr", "0.5") == 2
    assert "config.lr: 1e-06 -> 0.5" in capsys.readouterr().err


def test_data_given_twice_is_joined() -> None:
    joined = cli.joined_data(["train", "--data", "a", "b", "--out", "o", "--data=c", "--data", "d"])
    assert joined == ["train", "--data", "a", "b", "c", "d", "--out", "o"]
    assert cli.joined_data(["rewrite", "--query", "x"]) == ["rewrite", "--query", "x"]


def test_quickstart_hands_its_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart = pytest.importorskip("visa_trainers.quickstart")
    fields = [
        [(f.name, f.type, f.default) for f in dataclasses.fields(kind)]
        for kind in (QuickstartOptions, quickstart.QuickstartConfig)
    ]
    assert fields[0] == fields[1]
    row = {"n": 3, "consistency_mean": 1.0, "consistency_std": 0.0, "jsr": 0.25}
    record = {"methods": {"copy": row}, "warnings": ["copy: odd"], "pictures": ["tradeoff.png"]}
    seen = []

    def run(config: object) -> Path:
        seen.append(config)
        (tmp_path / "report.json").write_text(json.dumps(record))
        return tmp_path / "report.json"

    monkeypatch.setattr(quickstart, "run", run)
    assert visa("quickstart", "--out", tmp_path, "--seed", "3", "--smoke", "--baselines") == 0
    assert seen == [quickstart.QuickstartConfig(out=tmp_path, seed=3, smoke=True, baselines=True)]
    out = capsys.readouterr().out
    assert "| copy | 3 | 1.000 ± 0.000 |" in out and "warning: copy: odd" in out
    for name in ("report.md", "report.json", "tradeoff.png"):
        assert str(tmp_path / name) in out.splitlines()


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert visa("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True


def test_every_stage_has_its_trainer() -> None:
    import importlib

    for config, name in cli.STAGES.items():
        trainer = importlib.import_module(f"visa_trainers.{name}")
        assert trainer.train.__annotations__["config"] == config.__name__
    assert {DetectorConfig, GRPOConfig} <= set(cli.STAGES)


def test_a_traceback_is_shown_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("rewrite", "--model", tmp_path, *SINGLE, "--target", "security=1")
    assert visa(*command) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("VISA_DEBUG", "1")
    assert visa(*command) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(command: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert visa("doctor") == 130
    assert "interrupted" in capsys.readouterr().err
