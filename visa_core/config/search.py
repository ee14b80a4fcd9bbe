"""Settings of the adaptive value search's outer loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

StrategyName = Literal["gaussian", "cma", "random"]


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """How samples that did better than their group move the Gaussian over value vectors.

    The paper names the rule's parts, not its equations: this is a reconstruction of them.
    """

    mean_rate: float = 0.7
    """Share of the way that the mean goes to the weighted mean of the better samples."""
    variance_rate: float = 0.3
    """Share of the way that the variance goes to the better samples' spread."""
    annealing: float = 0.97
    """Factor of the variance each iteration, on top of the rule."""
    floor: float = 0.02
    """Smallest standard deviation of a value."""

    def __post_init__(self) -> None:
        for name in ("mean_rate", "variance_rate", "annealing"):
            number = getattr(self, name)
            if not 0 < number <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be in (0, 1], got {number}")
        if not 0 <= self.floor < math.inf:
            raise ValueError(f"--floor must be at least 0, got {self.floor}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The outer loop: how many candidates, how often, where it begins."""

    strategy: StrategyName = "gaussian"
    """gaussian: the paper's rule, as far as it is known. cma: CMA-ES of the package cmaes. random:
    points drawn evenly, the best one kept."""
    candidates: int = 8
    """Value vectors of an iteration (K)."""
    iterations: int = 10
    """Iterations of the outer loop."""
    sigma: float = 0.3
    """Standard deviation of each value at the start."""
    bound: float = 1.0
    """Values stay between -bound and +bound."""
    rule: RuleConfig = RuleConfig()
    """How the Gaussian moves."""
    seed: int = 0
    """Seed of the candidates."""

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(
                f"--candidates must be at least 2, got {self.candidates}: a candidate's advantage "
                "is measured against the others of its iteration"
            )
        if self.iterations < 1:
            raise ValueError(f"--iterations must be at least 1, got {self.iterations}")
        for name in ("sigma", "bound"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")
