"""Settings of parts of GRPO: prompts drawn again, and evaluation while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ResampleSettings:
    """Groups whose rewards are all equal teach nothing; where too few are left, fresh prompts take
    their places (dynamic sampling, DAPO, arXiv:2503.14476).
    """

    below: float = 0.0
    """Draw again while less than this share of a step's groups is informative; 1 as soon as one is
    not. 0 never does.
    """
    tries: int = 3
    """Most times that a step draws again; what is uninformative then stays so."""

    def __post_init__(self) -> None:
        if not 0 <= self.below <= 1:
            raise ValueError(f"--resample.below must be in [0, 1], got {self.below}")
        if self.tries < 1:
            raise ValueError(f"--resample.tries must be at least 1, got {self.tries}")


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings:
    """Evaluation on held-out records while a policy trains; figures go into the step's metrics as
    eval_*.
    """

    data: tuple[str, ...] = ()
    """Held-out records, of the kinds that --data knows; none: no evaluation."""
    every: int = 50
    """Steps between evaluations; the last step is always one."""
    prompts: int = 64
    """Records that are used, the first ones that fit."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    keep_best: bool = False
    """Keep the model with the best `metric` so far in the folder best of the run."""
    metric: Literal["joint", "reward", "cosine", "consistency"] = "joint"
    """What is best: joint success (L2 < 0.8 and consistency > 0.3), or a mean."""

    def __post_init__(self) -> None:
        if self.keep_best and not self.data:
            raise ValueError("--held-out.keep-best needs --held-out.data to tell what is best")
        for name in ("every", "prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"--held-out.{name} must be at least 1, got {getattr(self, name)}")
        if not self.temperature >= 0:
            raise ValueError(f"--held-out.temperature must be at least 0, got {self.temperature}")
