"""What a search fine-tunes on and measures with: readers of the real formats."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from visa_core.config.search import AdaptiveConfig
from visa_core.data.schema import DataError, check_text, numbered_lines
from visa_core.evaluation.capability.math500 import TASK, read_problems
from visa_core.evaluation.capability.mmlu import Subject, read_subjects, shuffled
from visa_core.evaluation.pairwise.models import open_asked
from visa_core.evaluation.pairwise.questions import QUESTIONS, load_questions
from visa_core.search.judged import JudgedDrift
from visa_core.search.reward import Capability, MultipleChoice, math_answers
from visa_core.search.rewrites import Example
from visa_core.types import Rejected


def read_task(config: AdaptiveConfig) -> list[Example]:
    """Training examples of --task, the first --train-rows of them. Raises ValueError for a kind
    that is not known, DataError naming file and line.
    """
    kind, path = _split(config.task, "--task", ("math500", "jsonl"))
    if kind == "math500":
        problems = read_problems(path)[: config.train_rows]
        return [Example(f"{TASK}\n\n{p.problem}", p.solution, about=p.problem) for p in problems]
    return read_examples(path)[: config.train_rows]


def read_examples(path: Path) -> list[Example]:
    """Rows of JSON lines with "query" and "response"; the first bad one raises DataError."""
    rejected: list[Rejected] = []
    examples = []
    for line, text in numbered_lines(path, rejected):
        try:
            row = json.loads(text)
            examples.append(
                Example(
                    check_text("query", row.get("query")),
                    check_text("response", row.get("response")),
                )
            )
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path}:{line}: not a row with query and response: {error}") from None
    if rejected:
        raise DataError(f"{path}:{rejected[0].line}: {rejected[0].reason}")
    if not examples:
        raise DataError(f"{path}: holds no row")
    return examples


def capabilities(config: AdaptiveConfig) -> tuple[Capability, Capability]:
    """(the search's capability, the final table's), on questions that do not overlap.

    MATH-500 problems start after the training ones when task and capability are the same file.
    """
    kind, path = _split(config.capability, "--capability", ("mmlu", "math500"))
    count = config.capability_rows
    if kind == "math500":
        problems = read_problems(path)
        if config.task == config.capability:
            problems = problems[config.train_rows :]
        if len(problems) < 2:
            raise ValueError(
                f"{path}: no problem is left beside the {config.train_rows} to train on; lower "
                "--train-rows"
            )
        count = min(count, len(problems) // 2)
        options = {"max_tokens": config.max_tokens}
        return math_answers(problems[:count], **options), math_answers(problems[count:], **options)
    subjects = shuffled(read_subjects(path, config.shots), 0)
    budget = config.update.token_budget
    first, second = _halves(subjects, count)
    return MultipleChoice(first, budget), MultipleChoice(second, budget)


def probe_questions(config: AdaptiveConfig) -> tuple[list[str], list[str]]:
    """(the search's probes, the final table's): every other question each, at most --probe-rows.

    Without a file they are the open questions of `visa values`.
    """
    if config.probes is None:
        asked = [question.question for question in load_questions().questions]
    else:
        rejected: list[Rejected] = []
        asked = [text.strip() for _, text in numbered_lines(config.probes, rejected)]
        if rejected:
            raise DataError(f"{config.probes}:{rejected[0].line}: {rejected[0].reason}")
    if len(asked) < 2:
        raise ValueError(f"{config.probes}: give at least two probe questions, a line each")
    return asked[::2][: config.probe_rows], asked[1::2][: config.probe_rows]


def judged_drift(config: AdaptiveConfig) -> JudgedDrift | None:
    """Drift by win rates where --drift judged asks for it; answers and verdicts lie in OUT/judged.

    Raises what `open_asked` and `load_questions` do.
    """
    if config.drift != "judged":
        return None
    questions = load_questions(config.questions or QUESTIONS)
    return JudgedDrift(open_asked(config.judge), questions, config.protocol, config.out / "judged")


def _halves(subjects: Sequence[Subject], count: int) -> tuple[list[Subject], list[Subject]]:
    """`count` questions over all subjects, and all the others, both drawn by one seed."""
    total = sum(len(subject.items) for subject in subjects)
    share = min(0.5, count / total)
    drawn = random.Random(0)
    first, second = [], []
    for subject in subjects:
        items = drawn.sample(subject.items, len(subject.items))
        cut = max(1, round(share * len(items)))
        for side, part in ((first, items[:cut]), (second, items[cut:])):
            if part:
                side.append(
                    Subject(name=subject.name, examples=subject.examples, items=tuple(part))
                )
    if not second:
        raise ValueError("too few MMLU questions: one half is for the search, one for the table")
    return first, second


def _split(text: str | None, flag: str, kinds: tuple[str, ...]) -> tuple[str, Path]:
    kind, colon, path = (text or "").partition(":")
    if kind not in kinds or not colon or not path:
        raise ValueError(
            f"{flag} must be {' or '.join(f'{kind}:PATH' for kind in kinds)}, got {text!r}"
        )
    return kind, Path(path)
