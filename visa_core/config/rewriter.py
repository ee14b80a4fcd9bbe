"""Settings of the rewriter's stages: SFT and GRPO."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from visa_core.config.grpo_parts import HeldOutSettings, ResampleSettings
from visa_core.config.judging import RewardConfig, check_fact_precision
from visa_core.config.lora import LoraSettings
from visa_core.config.scale import ScaleSettings
from visa_core.config.vllm import VLLMSettings


@dataclass(frozen=True, kw_only=True)
class RewriterTraining(ScaleSettings):
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
    track: Literal["none", "wandb", "trackio"] = "none"
    """Send the figures to Weights & Biases or to Trackio as well, each configured by its own
    environment (WANDB_MODE=offline, TRACKIO_DIR ...).
    """
    track_project: str = "visa"
    """Name of the project there; the run is named after the folder `out`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero and self.optimizer == "muon":
            raise ValueError(
                "--optimizer muon needs whole matrices: use --zero 0 with it, or adamw"
            )
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


def _check_adapter(lora: LoraSettings, training: RewriterTraining) -> None:
    if lora.rank and training.zero:
        raise ValueError("--lora.rank needs --zero 0: adapters are small, plain ranks do")
    if lora.rank and training.optimizer == "muon":
        raise ValueError("--optimizer muon is for whole matrices: use adamw with --lora.rank")


@dataclass(frozen=True, kw_only=True)
class SFTConfig(RewriterTraining):
    """Supervised fine-tuning of the rewriter on references. Defaults are the paper's."""

    batch_size: int = 16
    """Rows of a step on one device, before accumulation."""
    accumulation: int = 1
    """A step has batch_size x accumulation rows."""
    token_budget: int = 32768
    """Most tokens of one forward pass, counted without padding: the rows of a step are packed
    into as few passes as fit.
    """
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Train an adapter instead of the weights."""
    fp8: bool = False
    """Products of the linear layers below the head in float8, through torchao; needs a GPU that has
    them (Hopper or newer).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fp8 and (self.zero == 3 or self.lora.rank):
            raise ValueError("--fp8 needs whole, trained weights: no --zero 3 and no --lora.rank")
        for name in ("batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        _check_adapter(self.lora, self)
        if self.token_budget < self.max_prompt + self.max_completion:
            raise ValueError(
                f"--token-budget {self.token_budget} is less than one row may have: --max-prompt + "
                f"--max-completion = {self.max_prompt + self.max_completion}"
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
    """Nucleus of the sampler: the smallest set of tokens with this probability; 1 keeps all."""
    top_k: int = 0
    """Most probable tokens that the sampler keeps; 0 keeps all."""
    min_p: float = 0.0
    """Tokens below this share of the most probable one's probability are not sampled."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens of the vocabulary that end a completion beside the model's own end tokens."""
    chunk: int = 0
    """Prompts that are sampled at a time, then scored; 0: all of a step's."""
    overlap: bool = False
    """Score a chunk in a second thread while the next one is sampled; needs --chunk. The results
    are those of the same chunks one after another. It helps where the scorers have a processor of
    their own (--scorer-device).
    """
    scorer_device: str | None = None
    """Device of detector, translator and fact analyzer; without it the policy's."""
    fact_precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the fact analyzer reads in bfloat16, and pairs whose label is in doubt once more in
    float32. Consistency keeps bfloat16's error; where the processor or the model does not gain by
    it, float32 is used and the log says so.
    """
    resample: ResampleSettings = field(default_factory=ResampleSettings)
    """When prompts whose completions all earn the same are replaced."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"] = "dapo"
    """How clipped terms are put together."""
    clip_low: float = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped from above at 1 + clip_high."""
    kl_beta: float = 0.0
    """Weight of the KL to a frozen reference; 0 keeps no second model. With an adapter the
    reference is the base below it, otherwise a copy of the starting model, or `reference`.
    """
    reference: Path | None = None
    """Folder of another model that the KL pulls to."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """What centred rewards are divided by."""
    sampler_correction: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "none"
    ] = "token_truncate"
    """Weight for the difference between sampler and trainer, by token or by whole completion:
    truncate caps it, mask drops what lies beyond the cap.
    """
    token_budget: int | None = None
    """Most tokens of a micro-batch, a prompt counted once for its completions; without it a
    micro-batch has batch_size completions.
    """
    mask_truncated: bool = False
    """Leave completions that were cut at max_completion out of the loss."""
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    """Evaluation while it trains."""
    samples_every: int = 0
    """Steps between tables of rewrites in samples.jsonl of the run's folder; 0: none."""
    samples: int = 4
    """Prompts of such a table, each with its best and its worst rewrite."""
    engine: Literal["hf", "vllm"] = "hf"
    """What samples: the trained module itself, or vLLM in the same process."""
    eager_sampling: bool = False
    """No CUDA graphs in the hf engine on a GPU: slower, for models that cannot be captured."""
    vllm: VLLMSettings = field(default_factory=VLLMSettings)
    """How vLLM runs."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Train an adapter instead of the weights."""

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
        longest = self.max_prompt + self.max_completion
        if self.token_budget is not None and self.token_budget < longest:
            raise ValueError(
                f"--token-budget {self.token_budget} is less than one completion may need: "
                f"--max-prompt + --max-completion = {longest}"
            )
        _check_adapter(self.lora, self)
        if self.completions % self.group_size:
            raise ValueError(
                f"--batch-size x --accumulation = {self.completions} completions is no multiple of "
                f"--group-size = {self.group_size}"
            )
        check_fact_precision(self.fact_precision, self.reward)
        self._check_sampling()

    def _check_sampling(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"--temperature must be above 0 in training, got {self.temperature}")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1 or self.top_k < 0:
            raise ValueError(
                "--top-p must be in (0, 1], --min-p in [0, 1) and --top-k at least 0, got "
                f"{self.top_p}, {self.min_p} and {self.top_k}"
            )
        if self.chunk < 0:
            raise ValueError(f"--chunk must be 0 (all prompts) or more, got {self.chunk}")
        if self.overlap and not self.chunk:
            raise ValueError("--overlap needs --chunk: with one chunk there is nothing to overlap")
        if self.reference is not None and not self.kl_beta:
            raise ValueError("--reference needs --kl-beta above 0: nothing else reads it")

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.batch_size * self.accumulation

    @property
    def prompts(self) -> int:
        """Prompts of a step."""
        return self.completions // self.group_size
