"""Settings of preference training of the rewriter: DPO and SimPO."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from visa_core.config.judging import RewardConfig, check_fact_precision
from visa_core.config.rewriter import RewriterTraining


@dataclass(frozen=True, kw_only=True)
class PreferenceTraining(RewriterTraining):
    """Settings that DPO and SimPO share: where the pairs come from, and the shape of a step."""

    pairs: Literal["source", "sampled", "ranked"] = "source"
    """How pairs are made of rewriting records. source: the reference before the unchanged
    response, which needs nothing else. sampled: the reference before a rewrite that the starting
    model samples. ranked: the best before the worst of --samples sampled rewrites, by the reward
    that GRPO is paid by; needs --detector and --fact-analyzer, and no references."""
    pair_file: Path | None = None
    """Pairs made before, the pairs.jsonl of another run; --data is then not read."""
    samples: int = 8
    """Rewrites sampled a record for ranked pairs."""
    temperature: float = 1.0
    """Temperature of sampling them."""
    min_margin: float = 0.1
    """Ranked pairs whose rewards are nearer than this are left out."""
    detector: Path | None = None
    """Folder of the frozen detector, for ranked pairs."""
    fact_analyzer: Path | None = None
    """Folder of the frozen fact analyzer, for ranked pairs."""
    fact_precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the fact analyzer reads in bfloat16, and pairs whose label is in doubt once more in
    float32. Consistency keeps bfloat16's error; where the processor or the model does not gain by
    it, float32 is used and the log says so.
    """
    translator: Path | None = None
    """Folder of the frozen translator; without it the records' own targets or shifts are used."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What ranks sampled rewrites."""
    lr: float = 1e-6
    """Peak learning rate of AdamW."""
    batch_size: int = 16
    """Pairs of a step."""
    token_budget: int = 32768
    """Most tokens of one forward pass; a pair's prompt counts once."""
    label_smoothing: float = 0.0
    """Share of pairs taken to be labelled the wrong way round."""
    sft_weight: float = 0.0
    """Weight of the chosen rewrites' cross entropy, added to the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero or self.weights != "fp32" or self.offload or self.gradient_checkpointing:
            raise ValueError(
                "--zero, --weights, --offload and --gradient-checkpointing are for sft and grpo: "
                "preference training runs on one device in fp32"
            )
        for name in ("batch_size", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"--temperature must be above 0, got {self.temperature}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"--label-smoothing must be in [0, 0.5), got {self.label_smoothing}")
        for name in ("sft_weight", "min_margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}"
                )
        check_fact_precision(self.fact_precision, self.reward)
        most = self.max_prompt + 2 * self.max_completion
        if self.token_budget < most:
            raise ValueError(
                f"--token-budget {self.token_budget} is less than one pair may have: --max-prompt "
                f"+ 2 x --max-completion = {most}"
            )
        if self.pairs == "ranked" and self.pair_file is None:
            self._check_ranked()

    def _check_ranked(self) -> None:
        if self.detector is None or self.fact_analyzer is None:
            raise ValueError("--pairs ranked needs --detector and --fact-analyzer to rank by")
        if self.samples < 2:
            raise ValueError(f"--samples must be at least 2 for --pairs ranked, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(PreferenceTraining):
    """Direct preference optimisation of the rewriter on pairs of rewrites."""

    beta: float = 0.1
    """How far the model may leave its reference: the larger, the less."""
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """sigmoid: DPO itself. hinge: SLiC's margin. ipo: a squared distance per token to 1 / (2 beta),
    which does not push without end."""
    reference: Path | None = None
    """Folder of the frozen reference; without it the starting model. Its logprobs are computed once
    before training, so that no second model is held."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_beta(self.beta)
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError("--label-smoothing goes with --loss-type sigmoid alone")


@dataclass(frozen=True, kw_only=True)
class SimPOConfig(PreferenceTraining):
    """Simple preference optimisation: mean logprobs a token, a margin, and no reference model."""

    beta: float = 2.0
    """Scale of the difference of mean logprobs."""
    gamma: float = 1.0
    """Margin by which the scaled difference should win."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_beta(self.beta)
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"--gamma must be at least 0, got {self.gamma}")


def _check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"--beta must be above 0, got {beta}")
