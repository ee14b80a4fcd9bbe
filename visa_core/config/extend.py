"""Settings of extending a trained system by new value dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visa_core.config.lora import LoraSettings
from visa_core.config.rewriter import SFTConfig


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
    """Teach a trained rewriter new values without losing the old ones.

    It is widened first: its prompts name the new values. Then three ways are trained by SFT:
    rehearsal (all weights, on new and old tasks), lora (an adapter and the new words, all else
    frozen, on the same tasks) and, to compare with, plain (all weights, on the new tasks alone).
    The better of the first two is OUT/model. Without --rehearsal it is only widened, into
    OUT/start.
    """

    model: Path
    """Folder of the trained rewriter."""
    space: Path
    """JSON file of the larger value space; it keeps every old dimension under its name."""
    data: tuple[str, ...] = ()
    """Tasks with references that use the new values, as `visa train sft` reads them."""
    rehearsal: tuple[str, ...] = ()
    """Tasks with references of the old values."""
    held_out: tuple[str, ...] = ()
    """Tasks with targets of the new values, to measure on."""
    held_out_old: tuple[str, ...] = ()
    """Tasks with targets of the old values, to measure forgetting on."""
    detector: Path | None = None
    """Folder of a detector of the larger space, such as what `visa extend scorer` made."""
    fact_analyzer: Path | None = None
    """Folder of the fact analyzer."""
    out: Path
    """Folder of the result: OUT/model, OUT/start, a folder for each way, forgetting.json and .md.
    """
    add_words: bool = False
    """Add frequent words of the data to the vocabulary; for rewriters with a vocabulary of whole
    words, as the embedded recipe makes them."""
    epochs: float = 2.0
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 16
    """Rows of a step."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: torch's Muon for hidden matrices at muon_lr, AdamW at lr for the rest."""
    muon_lr: float = 0.02
    """Muon's peak learning rate."""
    lora_rank: int = 16
    """Rank of the lora way's adapter, which has twice that as its alpha; 0 leaves the way out."""
    lora_lr: float | None = None
    """Its peak learning rate, of AdamW; without it ten times --lr."""
    tolerance: float = 0.02
    """Relative loss of the old values' joint success that a way may have and still be chosen."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: products in bfloat16 under autocast, weights and moments in float32."""
    temperature: float = 0.7
    """Sampling temperature of the report; 0 is greedy."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    seed: int = 0
    """Seed of new weights, of the order and of sampling."""

    def __post_init__(self) -> None:
        needed = ("data", "held_out", "held_out_old", "detector", "fact_analyzer")
        for name in needed if self.rehearsal else ():
            if not getattr(self, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} is needed to train and measure; without "
                    "--rehearsal the rewriter is only widened"
                )
        if not self.rehearsal and (self.held_out or self.held_out_old):
            raise ValueError("--rehearsal: give tasks of the old values to train on")
        if self.add_words and not self.data:
            raise ValueError("--add-words takes its words from --data: give it")
        if self.lora_rank < 0:
            raise ValueError(f"--lora-rank must be at least 0, got {self.lora_rank}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"--tolerance must be at least 0, got {self.tolerance}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature must be at least 0, got {self.temperature}")

    @property
    def protected(self) -> tuple[str, ...]:
        """The ways of which one becomes the result."""
        return ("rehearsal", "lora") if self.lora_rank else ("rehearsal",)

    def sft(self, way: str, limits: dict[str, int], first_new: int = 0) -> SFTConfig:
        """The stage's settings of one way; a run that is there already is gone on with.

        first_new: number of the first token that the widened rewriter had added, 0 for none.
        """
        data = self.data if way == "plain" else (*self.data, *self.rehearsal)
        names = ("epochs", "steps", "batch_size", "lr", "optimizer", "muon_lr", "precision")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        if way == "lora":
            settings["lora"] = LoraSettings(
                rank=self.lora_rank, alpha=2.0 * self.lora_rank, new_tokens_from=first_new
            )
            settings |= {"optimizer": "adamw", "lr": self.lora_lr or 10 * self.lr}
        return SFTConfig(
            model=self.out / "start",
            data=data,
            out=self.out / way,
            resume=(self.out / way / "run.json").is_file(),
            device=self.device,
            seed=self.seed,
            **limits,
            **settings,
        )
