"""Options of `visa capability`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from visa_core.endpoints.config import ChatConfig


@dataclass(frozen=True, kw_only=True)
class CapabilityOptions:
    """Measure what a model can do: MMLU by answer log-probability, MATH-500 by math-verify."""

    tested: ChatConfig = field(default_factory=ChatConfig)
    """The model: a local folder, or an endpoint's for MATH-500 alone (MMLU needs its weights)."""
    mmlu: Path | None = None
    """Folder of MMLU's CSV files, NAME_test.csv and NAME_dev.csv, with or without header."""
    math500: Path | None = None
    """File of MATH-500, JSON lines."""
    out: Path | None = None
    """Folder for capability.json, capability.md, and MATH-500's answers as they come."""
    shots: int = 5
    """Worked examples before each MMLU question."""
    form: Literal["letter", "text"] = "letter"
    """letter: the choices are listed and their letters compared. text: the choices' own texts."""
    shuffle: bool = False
    """MMLU's choices in a random order drawn with --seed, so that a liking for a letter cancels."""
    packed: bool = True
    """Shared prompts are read once and nothing is padded; off: one padded row a choice."""
    token_budget: int = 8192
    """Most tokens of one pass of MMLU."""
    max_tokens: int = 1024
    """Longest answer to a MATH-500 problem in tokens."""
    temperature: float = 0.0
    """Sampling temperature of MATH-500; 0 is greedy."""
    n: int | None = None
    """Only the first N questions of each MMLU subject and of MATH-500."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of a local model's weights; auto: as they are stored."""
    seed: int = 0
    """Seed of sampling."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.tested.model:
            raise ValueError("--tested.model: name the model to measure")
        if self.mmlu is None and self.math500 is None:
            raise ValueError("give --mmlu, --math500, or both")
        if self.mmlu is not None and self.tested.base_url:
            raise ValueError(
                "--mmlu reads log-probabilities from the weights: give a local folder as "
                "--tested.model, without --tested.base-url"
            )
        if self.math500 is not None and self.out is None:
            raise ValueError("--math500 needs --out, the folder where its answers are kept")
        for name, least in (("shots", 0), ("token_budget", 1), ("max_tokens", 1), ("n", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least {least}, got {number}"
                )
        if self.temperature < 0:
            raise ValueError(f"--temperature must be at least 0, got {self.temperature}")
