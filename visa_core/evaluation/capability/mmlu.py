"""MMLU: both forms of its CSV files, few-shot prompts, accuracy by answer log-probability."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from visa_core.evaluation.capability.scorer import AnswerScorer
from visa_core.evaluation.intervals import share

LETTERS = "ABCD"
HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
Form = Literal["letter", "text"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with four choices; `answer` is the index of the right one."""

    subject: str
    question: str
    choices: tuple[str, str, str, str]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Questions of one subject and the worked examples that may stand before them."""

    name: str
    examples: tuple[Item, ...]
    items: tuple[Item, ...]


def read_items(path: Path, subject: str) -> list[Item]:
    """Rows of a file in either form: a header and the answer's index, or, as first published, no
    header and its letter.

    Raises ValueError that names file and line.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: line {reader.line_num + 1}: {error}") from None
    if not rows:
        raise ValueError(f"{path}: is empty")
    has_header = rows[0][1] == HEADER
    answers = "0123" if has_header else LETTERS
    items = []
    for line, row in rows[has_header:]:
        if len(row) != len(HEADER):
            raise ValueError(f"{path}: line {line}: {len(row)} columns instead of {len(HEADER)}")
        if len(row[5]) != 1 or row[5] not in answers:
            kind = "an index from 0 to 3" if has_header else "a letter from A to D"
            raise ValueError(
                f"{path}: line {line}: the answer must be {kind} in a file "
                f"{'with' if has_header else 'without'} a header, got {row[5]!r}"
            )
        items.append(
            Item(
                subject=subject,
                question=row[0],
                choices=(row[1], row[2], row[3], row[4]),
                answer=answers.index(row[5]),
            )
        )
    return items


def read_subjects(folder: Path, shots: int) -> list[Subject]:
    """Subjects of a folder: NAME_test.csv, with the examples of NAME_dev.csv beside it.

    Raises ValueError where there is none, or fewer examples than `shots`.
    """
    tests = sorted(folder.rglob("*_test.csv"))
    if not tests:
        raise ValueError(f"{folder}: holds no file NAME_test.csv")
    subjects = []
    for test in tests:
        name = test.name.removesuffix("_test.csv")
        examples: list[Item] = []
        if shots:
            dev = next(iter(sorted(folder.rglob(f"{name}_dev.csv"))), None)
            examples = read_items(dev, name) if dev is not None else []
            if len(examples) < shots:
                raise ValueError(
                    f"{folder}: {name} has {len(examples)} examples in {name}_dev.csv, fewer than "
                    f"--shots {shots}"
                )
        subjects.append(
            Subject(
                name=name, examples=tuple(examples[:shots]), items=tuple(read_items(test, name))
            )
        )
    return subjects


def shuffled(subjects: Sequence[Subject], seed: int) -> list[Subject]:
    """The same questions with each one's choices in a random order.

    The right letters of the real files are not even, and models like some letters better: only
    shuffled is chance 0.25 for every model.
    """
    drawn = random.Random(seed)

    def shuffle(item: Item) -> Item:
        order = drawn.sample(range(len(LETTERS)), len(LETTERS))
        choices = tuple(item.choices[i] for i in order)
        return replace(item, choices=choices, answer=order.index(item.answer))

    return [
        replace(
            subject,
            examples=tuple(map(shuffle, subject.examples)),
            items=tuple(map(shuffle, subject.items)),
        )
        for subject in subjects
    ]


def prefix_text(subject: Subject, form: Form) -> str:
    """What stands before every question of a subject: a heading and the worked examples."""
    heading = f"Multiple choice questions on {subject.name.replace('_', ' ')}, with answers."
    return "\n\n".join([heading, *(_worked(item, form) for item in subject.examples)]) + "\n\n"


def _worked(item: Item, form: Form) -> str:
    answer = LETTERS[item.answer] if form == "letter" else item.choices[item.answer].strip()
    return f"{question_text(item, form)} {answer}"


def question_text(item: Item, form: Form) -> str:
    """The question up to where the answer goes; form "letter" lists the choices."""
    if form == "text":
        return f"{item.question.strip()}\nAnswer:"
    choices = "".join(
        f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, item.choices, strict=True)
    )
    return f"{item.question.strip()}\n{choices}Answer:"


def evaluate_mmlu(
    scorer: AnswerScorer,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[Subject],
    form: Form = "letter",
) -> dict[str, Any]:
    """Accuracy by subject and over all, with intervals, and how often each letter was chosen.

    letter: the most probable of " A" to " D" after the listed choices. text: the choice whose own
    text has the highest log-probability a token.
    """
    by_subject: dict[str, Any] = {}
    right: list[float] = []
    chosen: Counter[str] = Counter()
    for subject in subjects:
        scores = subject_scores(scorer, tokenizer, subject, form)
        picks = scores.argmax(-1).tolist()
        hits = [float(p == item.answer) for p, item in zip(picks, subject.items, strict=True)]
        chosen.update(LETTERS[pick] for pick in picks)
        by_subject[subject.name] = share(hits)
        right += hits
    means = [entry["mean"] for entry in by_subject.values() if entry["mean"] is not None]
    answers = Counter(LETTERS[item.answer] for s in subjects for item in s.items)
    return {
        "form": form,
        "shots": len(subjects[0].examples),
        "accuracy": share(right),
        "mean_of_subjects": sum(means) / len(means),
        "subjects": by_subject,
        "chosen": {letter: chosen[letter] for letter in LETTERS},
        "right": {letter: answers[letter] for letter in LETTERS},
        "best_constant": max(answers.values()) / len(right),
    }


def subject_scores(
    scorer: AnswerScorer, tokenizer: PreTrainedTokenizerBase, subject: Subject, form: Form
) -> torch.Tensor:
    """Score of every choice, [questions, 4]: log-probability, a token's mean in form "text"."""
    prefix = tokenizer(prefix_text(subject, form))["input_ids"]
    blocks = [_ids(tokenizer, question_text(item, form)) for item in subject.items]
    if form == "letter":
        letters = [_ids(tokenizer, f" {letter}") for letter in LETTERS]
        if all(len(ids) == 1 for ids in letters):
            return scorer.next_token(prefix, blocks, [ids[0] for ids in letters])
        choices = [letters for _ in blocks]
    else:
        choices = [
            [_ids(tokenizer, f" {c.strip()}") for c in item.choices] for item in subject.items
        ]
    scores = scorer.continuations([[*prefix, *block] for block in blocks], choices)
    if form == "text":
        scores = [
            row / torch.tensor([len(c) for c in group], dtype=row.dtype)
            for row, group in zip(scores, choices, strict=True)
        ]
    return torch.stack(scores)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
