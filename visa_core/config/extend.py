"""Settings of extending a trained system by new value dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExtendScorerConfig:
    """Teach a trained detector or translator new values without losing the old ones.

    Three ways are trained: frozen (new rows and words alone), rehearsal (everything, on new and
    old data, with the old model's readings as labels where there are none) and, to compare with,
    plain (everything, on the new data alone). The better of the first two is OUT/model.
    """

    model: Path
    """Folder of the trained detector or translator."""
    space: Path
    """JSON file of the larger value space; it keeps every old dimension under its name."""
    data: tuple[str, ...]
    """What teaches the new values, as `visa train` reads it. Labels of old values are not used:
    such data rarely has them."""
    rehearsal: tuple[str, ...]
    """Data of the old values, such as what the model was trained on. New values that its rows do
    not name count as absent."""
    held_out: tuple[str, ...]
    """Rows with labels of all values, to measure on."""
    held_out_old: tuple[str, ...]
    """Rows of the old values, to measure forgetting on."""
    out: Path
    """Folder of the result: OUT/model, a folder for each way, and forgetting.json and .md."""
    reference: Path | None = None
    """Folder of a model trained on all values at once, to compare with."""
    add_words: bool = False
    """Add frequent words of the new data to the vocabulary; for the built-in backbone, whose
    vocabulary is its training texts."""
    tolerance: float = 0.02
    """Relative rise of the old values' error that a way may have and still be chosen."""
    epochs: int = 3
    """Passes over the data."""
    batch_size: int = 32
    """Rows of a step."""
    lr: float = 2e-3
    """Peak learning rate; for a pretrained backbone rather 5e-5, with --head-scale 20."""
    head_scale: float = 1.0
    """Learning rate of the heads as a multiple of the backbone's."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    seed: int = 0
    """Seed of new weights and of the order."""
    save_every: int = 500
    """Steps between checkpoints."""
    resume: bool = False
    """Continue what OUT holds."""
    tensorboard: bool = False
    """Write TensorBoard files too."""

    def __post_init__(self) -> None:
        for name in ("data", "rehearsal", "held_out", "held_out_old"):
            if not getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')}: give at least one kind of data")
        for name in ("epochs", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("lr", "head_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}"
                )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"--warmup must be in [0, 1), got {self.warmup}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"--tolerance must be at least 0, got {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class ExtendRewriterConfig:
    """Widen a trained rewriter to more values: its prompts name them. It learns what they mean by
    `visa train sft` and `visa train grpo` on tasks that use them.
    """

    model: Path
    """Folder of the trained rewriter."""
    space: Path
    """JSON file of the larger value space; it keeps every old dimension under its name."""
    out: Path
    """Folder of the widened rewriter."""
    data: tuple[str, ...] = ()
    """Tasks whose frequent words join the vocabulary; for rewriters with a vocabulary of whole
    words, as the embedded recipe makes them."""
    seed: int = 0
    """Seed of new weights."""
