"""The whole pipeline on real FULCRA dialogues and a plain Hugging Face folder, a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import tiny
from visa_core import Pipeline, cli
from visa_core.data.rewriting import load_rewriting
from visa_core.models.prompt import PromptTemplate
from visa_core.models.rewriter import Rewriter
from visa_core.pipeline import write_system

ROWS = 60
LIMITS = ["--max-prompt", "1024", "--max-completion", "320"]
SMALL = ["--backbone", "builtin", "--hidden-size", "16", "--layers", "1", "--epochs", "1"]


@pytest.fixture(scope="module")
def fulcra(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the real file."""
    source = shared_data / "fulcra" / "train.jsonl"
    if not source.is_file():
        pytest.skip(f"no FULCRA at {source}; set VISA_DATA to the folder that holds fulcra/")
    path = tmp_path_factory.mktemp("fulcra") / "train.jsonl"
    with source.open(encoding="utf-8") as file:
        path.write_text("".join(line for line, _ in zip(file, range(ROWS), strict=False)))
    return path


@pytest.fixture(scope="module")
def causal_lm(fulcra: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain folders: an untrained Qwen3 and a BPE tokenizer of this text, with and without chat."""
    dialogues = load_rewriting([f"fulcra:{fulcra}"], references=True)
    corpus = [text for d in dialogues for text in (d.query, d.response)]
    corpus += [PromptTemplate.load("rewrite").text()] * 20
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    for name, chat in (("chat", True), ("plain", False)):
        tiny.write_causal_lm(folder / name, corpus, vocabulary=2000, chat=chat)
    return {name: folder / name for name in ("chat", "plain")}


@pytest.fixture(scope="module")
def system(
    fulcra: Path, causal_lm: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Detector on FULCRA, translator and fact analyzer on embedded texts, then SFT and GRPO."""
    out = tmp_path_factory.mktemp("system")
    data = ["--data", f"fulcra:{fulcra}"]
    device = ["--device", "cpu"]
    visa("train", "detector", *data, "--out", out / "detector", *SMALL, *device)
    embedded = ["--data", "embedded:32"]
    visa("train", "translator", *embedded, "--out", out / "translator", *SMALL, *device)
    visa("train", "nli", *embedded, "--out", out / "fact_analyzer", *SMALL, *device)
    rewriter = [*data, *LIMITS, *device, "--precision", "fp32", "--steps", "2", "--lr", "1e-3"]
    start = ["--model", causal_lm["chat"], "--batch-size", "4"]
    visa("train", "sft", *rewriter, *start, "--out", out / "sft")
    parts = []
    for name in ("detector", "translator", "fact_analyzer"):
        parts += [f"--{name.replace('_', '-')}", out / name]
    sizes = ["--batch-size", "4", "--accumulation", "1", "--group-size", "2"]
    sizes += ["--max-completion", "24", "--reward.unfinished", "penalty"]  # none ends by itself
    visa("train", "grpo", *rewriter, *parts, *sizes, "--model", out / "sft", "--out", out / "grpo")
    write_system(out, rewriter="grpo")
    return out


def visa(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> torch.Tensor:
    model = Rewriter.from_pretrained(folder).model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_real_dialogues_become_tasks(fulcra: Path) -> None:
    tasks = load_rewriting([f"fulcra:{fulcra}"])
    warm_up = load_rewriting([f"fulcra:{fulcra}"], references=True)
    rows = [json.loads(line) for line in fulcra.read_text(encoding="utf-8").splitlines()]
    assert 0.9 * ROWS <= len(tasks) == len(warm_up) <= ROWS
    for task, row in zip(tasks, warm_up, strict=True):
        assert task.shift and task.instruction.startswith("make it ") and task.reference is None
        assert row.target == row.values and row.reference == row.response == task.response
        line = int(task.id.removeprefix("fulcra-"))
        assert task.response in rows[line - 1]["dialogue"]


@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_a_plain_folder_reads_the_default_template(
    fulcra: Path, causal_lm: dict[str, Path], kind: str
) -> None:
    rewriter = Rewriter.from_pretrained(causal_lm[kind])
    task = load_rewriting([f"fulcra:{fulcra}"])[0]
    rewriter.max_prompt = 4096
    ids = rewriter.prompt(task.query, task.response, rewriter.space.parse("security=1")).ids
    text = rewriter.tokenizer.decode(ids)
    assert task.query in text and task.response in text and "security +1" in text
    assert ("<|im_start|>system" in text) is (kind == "chat")
    ending = "<|im_start|>assistant\n" if kind == "chat" else "Rewritten response:"
    assert text.endswith(ending)
    assert rewriter.stop_ids == [rewriter.tokenizer.eos_token_id]


def test_training_moves_the_weights_and_logs(system: Path, causal_lm: dict[str, Path]) -> None:
    before, after_sft, after_grpo = map(
        weights, (causal_lm["chat"], system / "sft", system / "grpo")
    )
    assert not torch.equal(before, after_sft) and not torch.equal(after_sft, after_grpo)
    first, second = (row["loss"] for row in metrics(system / "sft"))
    vocabulary = Rewriter.from_pretrained(system / "sft").model.config.vocab_size
    assert first == pytest.approx(torch.tensor(vocabulary).log().item(), rel=0.1)
    assert second < first
    for row in metrics(system / "grpo"):
        assert -1 <= row["reward"] <= 2 and 0 < row["length"] <= 24


def test_rewrite_and_evaluate_real_dialogues(
    system: Path, fulcra: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", f"fulcra:{fulcra}", "--n", "4", "--json", "--out", tmp_path]
    capsys.readouterr()
    visa("evaluate", "rewriter", "--model", system, *options, "--vanilla", system / "sft")
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert list(methods) == ["copy", "rewriter", "vanilla"] and methods["copy"]["n"] == 4
    assert "true_jsr" not in methods["copy"], "nothing is known by construction about real text"
    task = load_rewriting([f"fulcra:{fulcra}"])[1]
    result = Pipeline.from_pretrained(system, device="cpu").rewrite(
        task.query, task.response, instruction=task.instruction
    )
    assert 0 <= result.consistency <= 1 and len(result.values_after) == 10


def test_the_default_prompt_limit_says_what_to_raise(
    system: Path, fulcra: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", f"fulcra:{fulcra}", "--out", tmp_path / "o", "--max-prompt", "300"]
    command = ["train", "sft", "--model", system / "sft", *options]
    assert cli.main([str(argument) for argument in command]) == 2
    assert "more than max_prompt = 300" in capsys.readouterr().err
