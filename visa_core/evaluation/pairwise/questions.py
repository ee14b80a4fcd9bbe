"""The question set of the pairwise protocol: dimensions, questions, default answers, prompt."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from visa_core.endpoints.chat import Message, message

FOLDER = Path(__file__).parent
QUESTIONS = FOLDER / "questions.json"
JUDGE_PROMPT = FOLDER / "judge.txt"
SLOTS = ("criterion", "high", "low", "question", "first", "second")

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A scale of values; a win is an answer nearer to its `high` end."""

    name: str
    title: str
    low: str
    high: str
    criterion: str
    """What the judge is told."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with the static answer that every tested answer is compared with."""

    id: str
    dimension: str
    question: str
    default_answer: str


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions with their dimensions, in the file's order."""

    about: str
    """Where the questions come from, and what they may not be compared with."""
    dimensions: tuple[Dimension, ...]
    questions: tuple[Question, ...]

    def dimension(self, name: str) -> Dimension:
        """The dimension of that name."""
        return next(dimension for dimension in self.dimensions if dimension.name == name)


def load_questions(path: str | Path = QUESTIONS) -> QuestionSet:
    """Read a question set; by default the 60 questions of this package, 15 a dimension.

    Raises ValueError that names the file and what is wrong in it.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must be an object with about, dimensions and questions")
    dimensions = tuple(_parts(path, data, "dimensions", Dimension))
    questions = tuple(_parts(path, data, "questions", Question))
    known = {dimension.name for dimension in dimensions}
    for question in questions:
        if question.dimension not in known:
            raise ValueError(
                f"{path}: question {question.id!r} has the dimension {question.dimension!r}, "
                f"which is none of {', '.join(sorted(known))}"
            )
    for kind, names in (
        ("dimension", [dimension.name for dimension in dimensions]),
        ("question", [question.id for question in questions]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: the {kind} {twice[0]!r} is there twice")
    empty = known - {question.dimension for question in questions}
    if empty:
        raise ValueError(f"{path}: the dimension {sorted(empty)[0]!r} has no question")
    return QuestionSet(about=str(data.get("about", "")), dimensions=dimensions, questions=questions)


def _parts(path: Path, data: Mapping[str, Any], key: str, kind: type[Part]) -> list[Part]:
    rows = data.get(key)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: {key} must be a list with at least one entry")
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    parts = []
    for number, row in enumerate(rows, 1):
        place = f"{path}: {key}[{number}]"
        if not isinstance(row, dict) or set(row) != set(names):
            raise ValueError(f"{place}: must have exactly the keys {', '.join(names)}")
        bad = [name for name in names if not isinstance(row[name], str) or not row[name].strip()]
        if bad:
            raise ValueError(f"{place}: {bad[0]} must be a text that is not empty")
        parts.append(kind(**row))
    return parts


@dataclass(frozen=True)
class JudgePrompt:
    """What the judge is asked; a plain file with [system] and [user] parts."""

    system: str
    user: str

    @classmethod
    def load(cls, path: str | Path = JUDGE_PROMPT) -> JudgePrompt:
        """Read it from a file. Raises ValueError naming the file and the slot that it lacks."""
        text = Path(path).read_text(encoding="utf-8")
        head, mark, user = text.partition("[user]\n")
        if not mark:
            raise ValueError(f"{path}: needs a line [user] with the user's part after it")
        missing = [slot for slot in SLOTS if f"{{{slot}}}" not in text]
        if missing:
            raise ValueError(f"{path}: lacks {{{missing[0]}}}")
        return cls(head.removeprefix("[system]\n").strip(), user.strip())

    def messages(
        self, dimension: Dimension, question: str, first: str, second: str
    ) -> tuple[Message, ...]:
        """The conversation that asks which of two answers is nearer to the dimension's high end."""
        texts = {
            "criterion": dimension.criterion,
            "high": dimension.high,
            "low": dimension.low,
            "question": question,
            "first": first,
            "second": second,
        }
        parts = [("system", self.system), ("user", self.user)]
        # One pass, so that braces inside an answer stay what they are.
        pattern = re.compile("{(" + "|".join(SLOTS) + ")}")
        return tuple(
            message(role, pattern.sub(lambda slot: texts[slot.group(1)], text))
            for role, text in parts
            if text
        )
