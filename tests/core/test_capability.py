"""MMLU and MATH-500: readers, log-probabilities against one-by-one passes, the checker itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

from tests.lms import KINDS, VOCAB, random_lm, random_rows
from tests.tiny import texts, write_causal_lm
from visa_core.cli import main
from visa_core.data.schema import DataError
from visa_core.endpoints import ChatRequest, EmbeddedChat
from visa_core.evaluation.capability.math500 import (
    boxed,
    evaluate_math,
    is_right,
    read_problems,
    self_agreement,
)
from visa_core.evaluation.capability.mmlu import (
    HEADER,
    LETTERS,
    evaluate_mmlu,
    prefix_text,
    question_text,
    read_items,
    read_subjects,
    shuffled,
)
from visa_core.evaluation.capability.scorer import AnswerScorer
from visa_core.evaluation.journal import Journal
from visa_core.models.rewriter import Rewriter


def granite(seed: int = 0) -> PreTrainedModel:
    """An architecture that divides its logits, so that its head alone gives others."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = GraniteConfig(
        vocab_size=VOCAB, logits_scaling=3.0, initializer_range=0.15, **sizes, **heads
    )
    return GraniteForCausalLM(config).eval()


MODELS = {"granite": granite} | {kind: lambda kind=kind: random_lm(kind) for kind in KINDS}


@torch.no_grad()
def one_by_one(model: PreTrainedModel, prompt: list[int], choice: list[int]) -> float:
    """log p(choice | prompt) by a forward pass of its own in double precision."""
    ids = torch.tensor([[*prompt, *choice]])
    logprobs = model.double()(ids).logits[0].log_softmax(-1)
    steps = range(len(prompt) - 1, len(prompt) + len(choice) - 1)
    value = sum(float(logprobs[t, token]) for t, token in zip(steps, choice, strict=True))
    model.float()
    return value


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("budget", [10_000, 40, 1])
def test_answers_equal_one_pass_each(name: str, packed: bool, budget: int) -> None:
    model = MODELS[name]()
    prompts = random_rows((7, 1, 12, 3), seed=1)
    choices = [
        random_rows(sizes, seed=s) for s, sizes in enumerate(((1, 3), (2,), (5, 1, 1), (4,)))
    ]
    prefix, rows, ids = random_rows((9,), seed=9)[0], random_rows((4, 1, 6), seed=8), [3, 17, 20]
    expected = [
        [one_by_one(model, p, c) for c in group] for p, group in zip(prompts, choices, strict=True)
    ]
    expected_next = [[one_by_one(model, [*prefix, *row], [i]) for i in ids] for row in rows]
    scorer = AnswerScorer(model, packed=packed, token_budget=budget)
    assert (scorer.head is None) == (name == "granite" or not packed)
    for got, wanted in zip(scorer.continuations(prompts, choices), expected, strict=True):
        torch.testing.assert_close(got.double(), torch.tensor(wanted).double(), rtol=0, atol=5e-6)
    got = scorer.next_token(prefix, rows, ids)
    torch.testing.assert_close(
        got.double(), torch.tensor(expected_next).double(), rtol=0, atol=5e-6
    )


def test_shared_text_is_read_once() -> None:
    """Packed, the tokens of a pass are the prefix once and each question once."""
    model = random_lm("qwen3")
    scorer = AnswerScorer(model)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prefix, rows = random_rows((20,))[0], random_rows((5, 6, 7), seed=1)
    scorer.next_token(prefix, rows, [2, 3, 4, 5])
    assert seen == [20 + 5 + 6 + 7]


def test_what_does_not_fit_the_model_is_refused() -> None:
    scorer = AnswerScorer(random_lm("qwen3"))
    with pytest.raises(ValueError, match="fewer examples with --shots"):
        scorer.next_token(random_rows((60,))[0], random_rows((5,)), [2, 3])


ITEMS = [
    ("What is 2 + 2?", "3", "4", "5", "22", 1),
    ('A "quoted", odd\nquestion', "a, b", "c", "d", "e", 3),
    ("Which is prime?", "2", "4", "6", "8", 0),
]


def write_mmlu(folder: Path, name: str, rows: list[tuple], header: bool) -> Path:
    path = folder / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(HEADER)
        writer.writerows([*row[:5], row[5] if header else LETTERS[row[5]]] for row in rows)
    return path


def test_both_forms_of_the_file_are_the_same(tmp_path: Path) -> None:
    with_header = read_items(write_mmlu(tmp_path, "a", ITEMS, True), "s")
    without = read_items(write_mmlu(tmp_path, "b", ITEMS, False), "s")
    assert with_header == without
    assert [item.answer for item in without] == [1, 3, 0]
    assert without[1].choices == ("a, b", "c", "d", "e")


@pytest.mark.parametrize(
    ("header", "row", "sentence"),
    [
        (True, ["q", "a", "b", "c", "d", "B"], "line 2: the answer must be an index from 0 to 3"),
        (False, ["q", "a", "b", "c", "d", "1"], "line 1: the answer must be a letter from A to D"),
        (True, ["q", "a", "b", "c", "1"], "line 2: 5 columns instead of 6"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, header: bool, row: list, sentence: str) -> None:
    path = tmp_path / "x_test.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, row] if header else [row])
    with pytest.raises(ValueError) as error:
        read_items(path, "x")
    assert f"{path}: {sentence}" in str(error.value)


def test_prompts_hold_examples_and_choices(tmp_path: Path) -> None:
    write_mmlu(tmp_path, "some_subject_test", ITEMS, True)
    write_mmlu(tmp_path, "some_subject_dev", ITEMS[:1], False)
    (subject,) = read_subjects(tmp_path, 1)
    prefix = prefix_text(subject, "letter")
    assert "some subject" in prefix and "B. 4\n" in prefix
    assert prefix.endswith("Answer: B\n\n")
    assert prefix_text(subject, "text").endswith("Answer: 4\n\n")
    assert question_text(subject.items[2], "letter").endswith("D. 8\nAnswer:")
    with pytest.raises(ValueError, match="1 examples in some_subject_dev.csv, fewer than --shots"):
        read_subjects(tmp_path, 2)
    with pytest.raises(ValueError, match="holds no file NAME_test.csv"):
        read_subjects(tmp_path / "none", 0)


@pytest.mark.parametrize("form", ["letter", "text"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_model_is_at_chance_on_real_questions(
    shared_data: Path, tmp_path: Path, form: str, seed: int
) -> None:
    """With shuffled choices any model that knows nothing is right with probability 1/4, whatever
    it likes; as the files are, one that says one letter to all gets 0.20 to 0.31.
    """
    torch.manual_seed(seed)
    write_causal_lm(tmp_path, texts())
    model = Rewriter.from_pretrained(tmp_path)
    real = read_subjects(shared_data / "mmlu_math", 1 if form == "letter" else 0)
    subjects = shuffled(real, seed)
    for before, after in zip(real, subjects, strict=True):
        for a, b in zip(before.items, after.items, strict=True):
            assert a.choices[a.answer] == b.choices[b.answer]
            assert sorted(a.choices) == sorted(b.choices)
    record = evaluate_mmlu(AnswerScorer(model.model), model.tokenizer, subjects, form)
    assert record["accuracy"]["n"] == sum(len(s.items) for s in subjects) > 1000
    low, high = record["accuracy"]["interval"]
    assert low <= 0.25 <= high


class Oracle:
    """Gives the highest score to the letters it is told, in order."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def next_token(self, prefix, rows, ids):
        assert len(rows) == len(self.letters)
        return torch.tensor([[float(letter == x) for letter in LETTERS] for x in self.letters])


def test_accuracy_counts_right_letters(tmp_path: Path) -> None:
    write_mmlu(tmp_path, "s_test", ITEMS, True)
    write_causal_lm(tmp_path / "lm", [*texts(), "A B C D Answer: A Answer: B Answer: C Answer: D"])
    tokenizer = Rewriter.from_pretrained(tmp_path / "lm").tokenizer
    subjects = read_subjects(tmp_path, 0)
    record = evaluate_mmlu(Oracle("BDC"), tokenizer, subjects)  # type: ignore[arg-type]
    assert record["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert record["chosen"] == {"A": 0, "B": 1, "C": 1, "D": 1}
    assert record["right"] == {"A": 1, "B": 1, "C": 0, "D": 1}
    assert record["best_constant"] == pytest.approx(1 / 3)


def test_math_verify_agrees_with_the_real_answers(shared_data: Path) -> None:
    """All 500 equal themselves and their own solutions; the next different answer almost never."""
    problems = read_problems(shared_data / "math500" / "test.jsonl")
    agreement = self_agreement(problems)
    assert agreement["themselves"]["n"] == 500
    assert agreement["themselves"]["mean"] == 1.0
    assert agreement["their_solutions"]["mean"] == 1.0
    assert agreement["another_answer"]["mean"] < 0.01


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("\\frac{1}{2}", "so it is $\\boxed{0.5}$", True),
        ("\\frac{1}{2}", "<think>\\boxed{3}</think>It is $\\boxed{\\tfrac12}$.", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}", True),
        ("\\frac{1}{2}", "\\boxed{2}", False),
        ("5", "I do not know.", False),
        ("5", "", False),
    ],
)
def test_answers_are_compared_as_mathematics(answer: str, text: str, right: bool) -> None:
    assert is_right(answer, text) is right


def write_problems(path: Path, n: int) -> Path:
    row = {"solution": "s", "subject": "Algebra"}
    rows = [row | {"problem": f"{i} + 1 =", "answer": str(i + 1), "level": i % 2} for i in range(n)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_math_accuracy_and_restart(tmp_path: Path) -> None:
    problems = read_problems(write_problems(tmp_path / "p.jsonl", 10))
    calls: list[str] = []

    def answer(request: ChatRequest) -> str:
        calls.append(request.tag)
        number = int(request.messages[-1]["content"].split()[-4])
        if number == 7 and len(calls) < 12:
            raise ValueError("cut connection")
        return boxed(str(number + 1)) if number < 4 else boxed("0")

    with Journal(tmp_path / "j.jsonl") as journal:
        first = evaluate_math(EmbeddedChat(answer), "id", problems, journal)
        assert first["missing"] == {"cut connection": 1} and first["accuracy"]["n"] == 9
        calls += ["later"] * 2
        second = evaluate_math(EmbeddedChat(answer), "id", problems, journal)
    assert second["missing"] == {} and len(calls) == 10 + 2 + 1
    assert second["accuracy"]["mean"] == pytest.approx(0.4)
    assert second["levels"]["0"]["n"] == 5


def test_bad_problems_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "x"}\n')
    with pytest.raises(DataError, match=r"p.jsonl:1: not a problem"):
        read_problems(path)


def test_the_command_measures_a_folder(tmp_path: Path, capsys) -> None:
    mmlu, out = tmp_path / "mmlu", tmp_path / "out"
    mmlu.mkdir()
    write_mmlu(mmlu, "s_test", ITEMS, False)
    write_causal_lm(tmp_path / "lm", texts())
    command = ["capability", "--tested.model", tmp_path / "lm", "--tested.device", "cpu"]
    command += ["--mmlu", mmlu, "--shots", "0", "--out", out, "--max-tokens", "4"]
    command += ["--math500", write_problems(tmp_path / "p.jsonl", 3), "--dtype", "fp32"]
    assert main([str(part) for part in command]) == 0
    record = json.loads((out / "capability.json").read_text())
    assert record["mmlu"]["accuracy"]["n"] == record["math500"]["accuracy"]["n"] == 3
    assert "prompts are this project's own" in capsys.readouterr().out
    assert "Chance is 0.25; one letter" in (out / "capability.md").read_text()


def test_flags_that_do_not_fit_are_refused(tmp_path: Path, complaint) -> None:
    model = ("capability", "--tested.model", "x")
    assert "give --mmlu, --math500, or both" in complaint(*model)
    url = ("--tested.base-url", "http://localhost:1/v1")
    assert "reads log-probabilities from the weights" in complaint(*model, "--mmlu", tmp_path, *url)
    assert "--math500 needs --out" in complaint(*model, "--math500", tmp_path / "p")
    assert "--shots must be at least 0" in complaint(*model, "--mmlu", tmp_path, "--shots", "-1")
