"""What a rewrite is paid for, and when it counts as a success."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a rewrite is paid for."""

    w_val: float = 1.0
    """Weight of the cosine between the rewrite's values and the target."""
    w_sem: float = 1.0
    """Weight of the semantic term."""
    form: Literal["sum", "product", "gated"] = "sum"
    """sum: w_val cos + w_sem sem. product: ((1 + cos) / 2)^w_val sem^w_sem. gated: the sum, where
    cos
    counts as -1 until sem reaches `gate`."""
    consistency: Literal["geometric", "min", "published"] = "geometric"
    """Semantic term from fwd and bwd: their geometric mean, the smaller one, or the published
    mixture
    (2 fwd + bwd) / 3. A rewrite that drops every fact is still entailed by its source, so the
    published one pays it; the other two do not."""
    gate: float = 0.5
    """Semantic term from which the gated form pays for values."""
    unfinished: Literal["worst", "penalty", "ignore"] = "worst"
    """A rewrite cut at the length limit gets the worst reward of the form, or loses
    `unfinished_penalty`, or is scored as it stands."""
    unfinished_penalty: float = 0.5
    """What "penalty" takes off."""
    neutral_norm: float = 0.25
    """Detected values shorter than this count as neutral (cosine 0) in the reward: half the
    smallest
    step of the scale. 0 takes the cosine as it is."""
    distance_weight: float = 0.0
    """Taken off per unit of L2 distance between the rewrite's values and the target. The cosine
    alone
    cannot see how strongly a value is expressed; joint success can. 0 is the published reward."""
    repetition_weight: float = 0.0
    """Taken off per share of repeated word 4-grams: against policies that say things twice."""
    non_finite: Literal["raise", "worst"] = "raise"
    """A score that is NaN or infinite stops the run with a clear error, or that rewrite gets the
    worst
    reward and a warning counts it. It never reaches the optimizer."""
    batch_size: int = 64
    """Texts scored at once."""

    def __post_init__(self) -> None:
        for name in (
            "w_val",
            "w_sem",
            "unfinished_penalty",
            "neutral_norm",
            "distance_weight",
            "repetition_weight",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"reward {name} must be at least 0, got {getattr(self, name)}")
        if self.w_val == self.w_sem == 0:
            raise ValueError("reward w_val and w_sem are both 0: nothing would be rewarded")
        if not 0 <= self.gate <= 1:
            raise ValueError(f"reward gate must be in [0, 1], got {self.gate}")
        if self.batch_size < 1:
            raise ValueError(f"reward batch_size must be at least 1, got {self.batch_size}")


def check_fact_precision(precision: str, reward: RewardConfig) -> None:
    """Raise ValueError for an unknown precision of the fact analyzer, and for bfloat16 where a
    threshold of consistency decides: what is read again keeps labels, not consistency.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"--fact-precision is float32 or bfloat16, not {precision!r}")
    if precision == "bfloat16" and reward.form == "gated":
        raise ValueError(
            "--fact-precision bfloat16 keeps float32's labels, but not its consistency to the last "
            "digit, and --reward.form gated pays by a threshold of it: use float32"
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When a rewrite counts as a success, and when a report warns of reward hacking."""

    l2_below: float = 0.8
    """Joint success needs a distance to the target below this ..."""
    consistency_above: float = 0.3
    """... and a published consistency (2 fwd + bwd) / 3 above this."""
    batch_size: int = 64
    """Texts scored at once."""
    truth_gap: float = 0.1
    """Largest difference between learned and true joint success without a warning."""
    length_growth: float = 1.3
    """Largest mean length without a warning, as a multiple of the references' (else the sources').
    """
    repeated_share: float = 0.1
    """Largest share of rewrites that say something twice without a warning."""
    facts_kept: float = 0.5
    """Least true share of facts kept without a warning while the learned consistency passes."""
    direction_gap: float = 0.3
    """Largest difference between mean fwd and bwd without a warning."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"evaluation batch_size must be at least 1, got {self.batch_size}")
        if not 0 < self.l2_below < math.inf:
            raise ValueError(f"evaluation l2_below must be above 0, got {self.l2_below}")
        if not 0 <= self.consistency_above < 1:
            raise ValueError(
                f"evaluation consistency_above must be in [0, 1), got {self.consistency_above}"
            )
