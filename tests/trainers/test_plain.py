"""Plain fine-tuning: what is read, what is learnt, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import texts, write_causal_lm, write_lines
from visa_core.cli import main
from visa_core.config.lora import LoraSettings
from visa_core.config.plain import PlainConfig
from visa_core.data.plain import FIELDS, PlainExample, load_plain
from visa_core.data.schema import DataError
from visa_trainers import plain


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "lm"
    write_causal_lm(folder, texts())
    return folder


@pytest.mark.parametrize("names", FIELDS)
def test_known_names_are_read(tmp_path: Path, names: tuple[str, str]) -> None:
    row = {names[0]: "Q?", names[1]: "A.", "id": 3}
    rows, rejected = load_plain((f"jsonl:{write_lines(tmp_path / 'x.jsonl', [row])}",))
    assert rows == [PlainExample("Q?", "A.")] and not rejected


def test_own_names_and_bad_lines(tmp_path: Path) -> None:
    lines = [{"ask": "Q?", "reply": "A."}, {"ask": " ", "reply": "A."}, {"ask": "Q?"}, "nonsense"]
    path = write_lines(tmp_path / "x.jsonl", lines)
    rows, rejected = load_plain((f"jsonl:{path}",), ("ask", "reply"))
    assert rows == [PlainExample("Q?", "A.")]
    assert [bad.line for bad in rejected] == [2, 3, 4]


def test_math500_itself(shared_data: Path) -> None:
    rows, _ = load_plain((f"math500:{shared_data / 'math500/test.jsonl'}",))
    assert len(rows) == 500
    assert all("\\boxed" in row.question and "\\boxed" in row.answer for row in rows)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"ask": "Q?", "reply": "A."}, "hold none of the known names"),
        ({"question": "a", "answer": "b", "prompt": "c", "completion": "d"}, "several pairs"),
    ],
)
def test_unclear_names_are_refused(tmp_path: Path, row: dict, sentence: str) -> None:
    path = write_lines(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=sentence) as error:
        load_plain((f"jsonl:{path}",))
    assert f"{path}:1" in str(error.value) and "--question-field" in str(error.value)


def test_it_learns_the_answer_and_transformers_loads_it(base: Path, tmp_path: Path) -> None:
    """The model says the answer it was taught, in transformers' own generate; the first loss is
    transformers' cross entropy of the answer's tokens.
    """
    example = {"question": "What is owed?", "answer": "Two goats."}
    data = write_lines(tmp_path / "law.jsonl", [example] * 4)
    out = tmp_path / "out"
    command = ["train", "plain", "--model", base, "--data", f"jsonl:{data}", "--out", out]
    command += ["--steps", "60", "--lr", "0.02", "--batch-size", "2", "--precision", "fp32"]
    assert main([str(part) for part in [*command, "--device", "cpu"]]) == 0
    assert not (out / "rewriter.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": example["question"]}],
        add_generation_prompt=True,
        return_dict=False,
    )
    answer = tokenizer(example["answer"], add_special_tokens=False)["input_ids"]
    answer = [*answer, tokenizer.eos_token_id]
    rows = torch.tensor([[*ids, *answer]])
    labels = torch.tensor([[-100] * len(ids) + answer])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(base)(rows, labels=labels).loss.item()
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(before, rel=1e-4)
    said = AutoModelForCausalLM.from_pretrained(out).generate(
        torch.tensor([ids]), max_new_tokens=len(answer), do_sample=False
    )[0, len(ids) :]
    assert tokenizer.decode(said, skip_special_tokens=True) == example["answer"]


def test_an_adapter_is_merged_and_new_tokens_alone_are_trained(base: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "x.jsonl", [{"query": "What is owed?", "response": "Goats."}])
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    last = len(before["model.embed_tokens.weight"]) - 1
    config = PlainConfig(
        model=base,
        data=(f"jsonl:{data}",),
        out=tmp_path / "o",
        steps=2,
        lr=0.05,
        precision="fp32",
        device="cpu",
        lora=LoraSettings(rank=2, targets=("q_proj",), new_tokens_from=last),
    )
    after = AutoModelForCausalLM.from_pretrained(plain.train(config)).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(
        "q_proj" in name or "embed" in name or "head" in name for name in changed
    )
    rows = [before["model.embed_tokens.weight"], after["model.embed_tokens.weight"]]
    assert torch.equal(rows[0][:last], rows[1][:last])
    with pytest.raises(ValueError, match="whole matrices"):
        replace(config, optimizer="muon")
    with pytest.raises(ValueError, match="--lora.new-tokens-from 9999: the model has"):
        lora = LoraSettings(rank=2, new_tokens_from=9999)
        plain.train(replace(config, lora=lora, out=tmp_path / "p"))


def test_rows_beyond_the_limits_are_set_aside(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"query": "Q?", "response": "A."}, {"query": "long " * 99, "response": "A."}]
    data = write_lines(tmp_path / "x.jsonl", rows)
    common = {"model": base, "data": (f"jsonl:{data}",), "precision": "fp32", "device": "cpu"}
    out = plain.train(PlainConfig(**common, out=tmp_path / "o", steps=1, max_prompt=60))
    assert math.isfinite(json.loads((out / "metrics.jsonl").read_text())["loss"])
    assert "1 of 2 records set aside" in caplog.text and "raise --max-prompt" in caplog.text


def test_bad_input_is_told(base: Path, tmp_path: Path, complaint) -> None:
    start = ("train", "plain", "--model", base, "--out", tmp_path / "o", "--data")
    assert "expected math500:PATH or jsonl:PATH" in complaint(*start, "csv:x")
    assert "none.jsonl" in complaint(*start, f"jsonl:{tmp_path}/none.jsonl")
    both = "--question-field and --answer-field: give both"
    assert both in complaint(*start, "jsonl:x", "--question-field", "q")
    assert "the chat template" in complaint(*start, "jsonl:x", "--template", "rewrite")
