"""Options of `visa values` and `visa drift`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from visa_core.config.values import ProtocolConfig
from visa_core.endpoints.config import ChatConfig


@dataclass(frozen=True, kw_only=True)
class ValuesOptions:
    """Read a model's own values: its answers to value questions against default answers, judged."""

    tested: ChatConfig = field(default_factory=ChatConfig)
    """The model whose values are read: an endpoint's or a local folder's."""
    judge: ChatConfig = field(default_factory=ChatConfig)
    """The model that compares. --judge.model embedded is a word count for dry runs, no judge."""
    out: Path
    """Folder for values.json, values.md, values.png, and every answer and verdict as they come.
    Started again with the same folder, nothing is asked twice."""
    protocol: Annotated[ProtocolConfig, arg(name="")] = field(default_factory=ProtocolConfig)
    """How is asked."""
    questions: Path | None = None
    """Another question set, a JSON file like visa_core/evaluation/pairwise/questions.json."""
    judge_prompt: Path | None = None
    """Another prompt for the judge, a file like visa_core/evaluation/pairwise/judge.txt."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.tested.model:
            raise ValueError("--tested.model: name the model whose values are read")
        check_judge(self.judge)


def check_judge(judge: ChatConfig) -> None:
    """Raises ValueError unless a judge is named."""
    if not judge.model:
        raise ValueError(
            "--judge.model: name the model that compares, with --judge.base-url for an endpoint's; "
            '"embedded" is a word count for dry runs'
        )
