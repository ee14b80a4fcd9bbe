"""Plain questions and answers to fine-tune on: MATH-500's form and JSON lines of any names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visa_core.data.schema import DataError, check_text, numbered_lines, parse_object
from visa_core.evaluation.capability.math500 import TASK, read_problems
from visa_core.types import Rejected

FIELDS = (
    ("query", "response"),
    ("question", "answer"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("instruction", "output"),
)
"""Field names of question and answer that are known without being told, as law, medicine and
mathematics sets have them.
"""

USAGE = "math500:PATH or jsonl:PATH"


@dataclass(frozen=True)
class PlainExample:
    """One question with the answer to learn."""

    question: str
    answer: str


def load_plain(
    specs: tuple[str, ...], fields: tuple[str, str] | None = None
) -> tuple[list[PlainExample], list[Rejected]]:
    """Rows of all specifications in order, and the lines that were set aside.

    math500:PATH: the problem under the instruction of `visa capability`, and its worked solution.
    jsonl:PATH: `fields` name the question's and the answer's; without them the first line's
    keys must hold exactly one pair of FIELDS. Other keys are ignored.
    Raises DataError for a specification or file that cannot be read, or with nothing valid in it.
    """
    examples: list[PlainExample] = []
    rejected: list[Rejected] = []
    for spec in specs:
        kind, _, path = spec.partition(":")
        if kind not in ("math500", "jsonl") or not path:
            raise DataError(f"--data {spec!r}: expected {USAGE}")
        if kind == "math500":
            problems = read_problems(path)
            examples += [PlainExample(f"{TASK}\n\n{p.problem}", p.solution) for p in problems]
        else:
            rows, bad = read_plain(path, fields)
            examples += rows
            rejected += bad
    return examples, rejected


def read_plain(
    path: str | Path, fields: tuple[str, str] | None = None
) -> tuple[list[PlainExample], list[Rejected]]:
    """Rows of one JSON-lines file and the lines that are none; see `load_plain`."""
    rejected: list[Rejected] = []
    rows: list[PlainExample] = []
    for line, text in numbered_lines(path, rejected):
        try:
            row = parse_object(text)
        except ValueError as error:
            rejected.append(Rejected(path=str(path), line=line, reason=str(error), text=text))
            continue
        fields = fields or _known_fields(row, f"{path}:{line}")
        try:
            rows.append(PlainExample(*(check_text(name, row.get(name)) for name in fields)))
        except ValueError as error:
            rejected.append(Rejected(path=str(path), line=line, reason=str(error), text=text))
    if not rows:
        first = f"; line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        raise DataError(f"{path}: holds no valid row{first}")
    return rows, rejected


def _known_fields(row: dict[str, Any], place: str) -> tuple[str, str]:
    found = [pair for pair in FIELDS if set(pair) <= set(row)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(" and ".join(pair) for pair in FIELDS)
    problem = "several pairs" if found else "none"
    raise DataError(
        f"{place}: its keys {json.dumps(sorted(row))} hold {problem} of the known names of "
        f"question and answer ({known}): name yours with --question-field and --answer-field"
    )
