"""Settings of plain fine-tuning: a chat model learns answers to questions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from visa_core.config.rewriter import SFTConfig


@dataclass(frozen=True, kw_only=True)
class PlainConfig(SFTConfig):
    """Fine-tune any causal LM on plain questions and answers, such as mathematics, law or medicine:
    what value drift is measured after.
    """

    data: tuple[str, ...]
    """What to train on, one or more of math500:PATH and jsonl:PATH. Questions and answers of JSON
    lines may be named query and response, question and answer, problem and solution, prompt and
    completion, or instruction and output."""
    question_field: str = ""
    """Name of the question in JSON lines with other names."""
    answer_field: str = ""
    """Name of the answer in JSON lines with other names."""
    template: str | None = None
    """Not for this stage: questions are put by the model's own chat template."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None:
            raise ValueError("--template: plain fine-tuning puts questions by the chat template")
        if bool(self.question_field) != bool(self.answer_field):
            raise ValueError("--question-field and --answer-field: give both or none")

    @property
    def fields(self) -> tuple[str, str] | None:
        """The given names of question and answer."""
        return (self.question_field, self.answer_field) if self.question_field else None


@dataclass(frozen=True, kw_only=True)
class NeutralTraining:
    """Settings of the fine-tunings that `visa drift --neutral` makes; the same for every domain."""

    epochs: float = 2.0
    """Passes over each domain's data."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    batch_size: int = 16
    """Rows of a step."""
    max_prompt: int = 512
    """Longest question in tokens; longer rows are set aside and counted."""
    max_completion: int = 1536
    """Longest answer in tokens."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: products in bfloat16 under autocast, weights and moments in float32."""
    question_field: str = ""
    """Name of the question in JSON lines with names that are not known."""
    answer_field: str = ""
    """Name of the answer there."""
    seed: int = 0
    """Seed of the order of rows."""

    def config(self, model: Path, data: str, out: Path, device: str) -> PlainConfig:
        """The stage's settings for one domain; a run that is there already is continued."""
        resume = (out / "run.json").is_file()
        common = {"model": model, "data": (data,), "out": out, "device": device, "resume": resume}
        return PlainConfig(**common, **asdict(self))
