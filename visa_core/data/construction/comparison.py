"""A comparison of two responses, as every reader gives it, and the account of what is set aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from visa_core.types import Rejected


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two responses to one prompt, the one a person chose, and why.

    root: the conversation's first prompt. Splits go by it, so that no later turn of a
    conversation, and no other person's answer to the same prompt, leaks into another split.
    """

    prompt: str
    chosen: str
    rejected: str
    explanation: str = ""
    id: str = ""
    root: str = ""
    language: str = ""
    path: str = ""
    line: int = 0


def conversation(turns: Sequence[tuple[str, str]], prompt: str) -> str:
    """A prompt with the (prompt, response) turns before it, speakers named; bare without any."""
    if not turns:
        return prompt
    before = [f"Human: {asked}\n\nAssistant: {said}" for asked, said in turns]
    return "\n\n".join([*before, f"Human: {prompt}"])


@dataclass(kw_only=True)
class Intake:
    """What the readers met: counts by kind, and each bad record in a file as it comes.

    `log` takes one JSON object a line: path, line, kind, reason, text.
    """

    log: IO[str] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[Rejected] = field(default_factory=list)

    SHOWN = 5

    def reject(self, kind: str, rejected: Rejected) -> None:
        """Set a record aside with its place and reason; `kind` is what the report counts it as."""
        self.counts[kind] += 1
        if len(self.shown) < self.SHOWN:
            self.shown.append(rejected)
        if self.log is not None:
            row = {"kind": kind, **asdict(rejected)}
            self.log.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode())
            self.log.write("\n")


def place(path: str | Path, line: int, reason: object, text: str = "") -> Rejected:
    """A rejected record, its text shortened."""
    return Rejected(path=str(path), line=line, reason=str(reason), text=text[:2000])
