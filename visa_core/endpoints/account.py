"""What a chat model was asked and what that cost: calls, tokens, money, and every fault by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Account:
    """Running totals. Prices are per million tokens, in whatever currency they are given in."""

    input_price: float = 0.0
    output_price: float = 0.0
    calls: int = 0
    """Requests sent, repetitions included."""
    answers: int = 0
    """Replies that held a text."""
    failures: int = 0
    """Requests given up after all their repetitions."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """What went wrong on the way, by kind, whether or not a repetition mended it."""

    @property
    def cost(self) -> float:
        """Money spent by the tokens that the endpoint reported."""
        spent = self.prompt_tokens * self.input_price + self.completion_tokens * self.output_price
        return spent / 1e6

    def add(self, other: Mapping[str, Any]) -> None:
        """Take in the counts of another account, given as a mapping of its fields."""
        for name in ("calls", "answers", "failures", "prompt_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + other[name])
        self.faults.update(other["faults"])

    def record(self) -> dict[str, Any]:
        """Plain data for reports, faults by name."""
        return {
            "calls": self.calls,
            "answers": self.answers,
            "failures": self.failures,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": round(self.cost, 6),
            "faults": dict(sorted(self.faults.items())),
        }
