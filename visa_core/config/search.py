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


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """The mock update: a short training of adapters on the frozen base."""

    steps: int = 20
    """Optimizer steps."""
    batch_size: int = 16
    """Rows of a step, of every candidate."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it falls linearly to a tenth."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Names of the linear layers that get adapters."""
    max_grad_norm: float = 1.0
    """Gradients of each candidate are clipped to this norm."""
    token_budget: int = 16384
    """Most tokens of one pass, over all candidates."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """bf16: products in bfloat16 under autocast, adapters in float32."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "token_budget"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("lr", "alpha", "max_grad_norm"):
            number = getattr(self, name)
            if not 0 < number < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {number}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"--warmup must be in [0, 1), got {self.warmup}")
        if not self.targets:
            raise ValueError("--targets: name at least one kind of linear layer")
