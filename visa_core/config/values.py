"""Settings of the pairwise protocol that reads a model's own values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """Settings of the protocol; all but the swap are the published ones."""

    answers: int = 20
    """Independent answers of the tested model to each question."""
    temperature: float = 0.2
    """Sampling temperature of the answers."""
    max_tokens: int = 512
    """Longest answer in tokens; answers cut there are counted."""
    judge_temperature: float = 0.1
    """Sampling temperature of the judge."""
    judge_max_tokens: int = 512
    """Longest verdict in tokens; a verdict cut there is unparsable."""
    order: Literal["swap", "tested_first"] = "swap"
    """swap: each answer is judged twice, once as Response 1 and once as Response 2, so that the
    judge's liking for a place cancels and is reported. tested_first: the published protocol."""
    seed: int = 0
    """Seed of sampling, for models that take one."""

    def __post_init__(self) -> None:
        for name in ("answers", "max_tokens", "judge_max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("temperature", "judge_temperature"):
            if not 0 <= getattr(self, name) <= 2:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be in [0, 2], got {getattr(self, name)}"
                )

    @property
    def orders(self) -> tuple[str, ...]:
        """Where the tested answer stands in the judge's prompts."""
        return ("first", "second") if self.order == "swap" else ("first",)
