"""MATH-500: worked answers of a chat model, checked by math-verify."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from visa_core.data.schema import DataError, numbered_lines
from visa_core.endpoints.chat import ChatModel, ChatRequest, message
from visa_core.evaluation.intervals import share
from visa_core.evaluation.journal import Journal, content_key
from visa_core.types import Rejected

TASK = "Solve this problem. Put the final answer, and nothing else, into \\boxed{}."
THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with its worked solution and final answer, both in LaTeX."""

    problem: str
    solution: str
    answer: str
    subject: str
    level: int


def read_problems(path: str | Path) -> list[Problem]:
    """Problems of a file in MATH-500's form, JSON lines. Raises DataError naming file and line."""
    rejected: list[Rejected] = []
    problems = []
    for line, text in numbered_lines(path, rejected):
        try:
            row = json.loads(text)
            problems.append(Problem(**{name: row[name] for name in Problem.__dataclass_fields__}))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{line}: not a problem with problem, solution, answer, subject and level: "
                f"{error}"
            ) from None
    if rejected:
        raise DataError(f"{path}:{rejected[0].line}: {rejected[0].reason}")
    if not problems:
        raise DataError(f"{path}: holds no problem")
    return problems


def is_right(answer: str, text: str) -> bool:
    """Whether the final answer in `text` equals `answer`, which is LaTeX without dollars.

    By math-verify: a \\boxed part counts first, else the last expression. Main thread only, since
    its time limits are signals. Raises ValueError where math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError as error:
        raise ValueError(
            "MATH-500 needs the package math-verify: pip install 'visa-core[capability]'"
        ) from error
    gold = parse(f"$\\boxed{{{answer}}}$")
    return bool(verify(gold, parse(THINKING.sub("", text))))


def self_agreement(problems: Sequence[Problem]) -> dict[str, Any]:
    """How far the checker can be trusted on these problems: the share of answers that it finds
    equal to themselves and to their own solutions, and to the next different answer (false alarms).
    """
    distinct = [
        (a.answer, b.answer)
        for a, b in zip(problems, [*problems[1:], problems[0]], strict=True)
        if a.answer != b.answer
    ]
    return {
        "themselves": share([float(is_right(p.answer, boxed(p.answer))) for p in problems]),
        "their_solutions": share([float(is_right(p.answer, p.solution)) for p in problems]),
        "another_answer": share([float(is_right(a, boxed(b))) for a, b in distinct]),
    }


def boxed(answer: str) -> str:
    """An answer as a model is asked to give it."""
    return f"The answer is $\\boxed{{{answer}}}$."


def evaluate_math(
    chat: ChatModel,
    identity: str,
    problems: Sequence[Problem],
    journal: Journal,
    *,
    temperature: float = 0.0,
    max_tokens: int = 1024,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy over all, by level and by subject, with intervals. Answers are kept in the journal
    as they come; what is there is not asked again.
    """
    requests = [
        ChatRequest(
            messages=(message("user", f"{TASK}\n\n{p.problem}"),),
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            tag=str(i),
        )
        for i, p in enumerate(problems)
    ]
    keys = [
        content_key(identity, list(r.messages), temperature, max_tokens, seed) for r in requests
    ]
    missing = _answer(chat, requests, keys, journal)
    hits: dict[tuple[str, str], list[float]] = defaultdict(list)
    cut = 0
    for problem, key in zip(problems, keys, strict=True):
        if key not in journal:
            continue
        hit = float(is_right(problem.answer, journal[key]["text"]))
        cut += journal[key]["finish"] == "length"
        for group in (("all", ""), ("level", str(problem.level)), ("subject", problem.subject)):
            hits[group].append(hit)
    return {
        "accuracy": share(hits["all", ""]),
        "levels": {k: share(v) for (kind, k), v in sorted(hits.items()) if kind == "level"},
        "subjects": {k: share(v) for (kind, k), v in sorted(hits.items()) if kind == "subject"},
        "cut": cut,
        "missing": missing,
        "temperature": temperature,
        "max_tokens": max_tokens,
    }


def _answer(
    chat: ChatModel, requests: Sequence[ChatRequest], keys: Sequence[str], journal: Journal
) -> dict[str, int]:
    """Ask what the journal lacks; how often no answer came, by reason."""
    pending = [i for i, key in enumerate(keys) if key not in journal]
    missing: dict[str, int] = {}
    bar = tqdm(total=len(pending), desc="MATH-500", disable=None, file=sys.stderr)
    with bar:
        for position, reply in chat.stream(requests[i] for i in pending):
            bar.update()
            if reply.ok:
                record = {"text": reply.text, "finish": reply.finish, "model": chat.name}
                journal.put(keys[pending[position]], record)
            else:
                missing[reply.error] = missing.get(reply.error, 0) + 1
    return missing
