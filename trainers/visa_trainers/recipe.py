"""The embedded recipe: every setting of the quickstart that differs from the defaults, in one
place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visa_core.config import (
    DetectorConfig,
    DPOConfig,
    GRPOConfig,
    NLIConfig,
    RewardConfig,
    SFTConfig,
    SimPOConfig,
    TranslatorConfig,
)
from visa_core.training.preference_pairs import PAIR_FILE


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything: rows of data and steps of training."""

    dialogues: int = 8000
    instructions: int = 6000
    nli_pairs: int = 12000
    paraphrases: int = 21600
    glossary: int = 7200
    triplets: int = 9600
    tasks: int = 6400
    preferences: int = 1000
    held_out: int = 250
    base_steps: int = 450
    sft_steps: int = 300
    grpo_steps: int = 180
    scorer_epochs: int | None = None


FULL = Sizes()
SMOKE = Sizes(
    dialogues=640,
    instructions=640,
    nli_pairs=640,
    paraphrases=640,
    glossary=160,
    triplets=320,
    tasks=320,
    preferences=50,
    held_out=24,
    base_steps=20,
    sft_steps=8,
    grpo_steps=4,
    scorer_epochs=1,
)

MODEL = {
    "hidden": 128,
    "layers": 2,
    "heads": 4,
    "intermediate": 384,
    "max_prompt": 112,
    "max_completion": 56,
}
"""The rewriter: Qwen3 architecture from scratch."""

TEMPERATURE = 0.7
"""Of sampling in GRPO and in the evaluation; greedy is reported beside it."""

REWARD = RewardConfig(distance_weight=0.3, repetition_weight=4.0, batch_size=128)
"""What GRPO is paid for, and what ranks the pairs of DPO and SimPO."""

GROUP = 8
"""Rewrites sampled a prompt, in GRPO and for ranked pairs."""

STEP_PROMPTS = 16
"""Prompts of a GRPO step."""

PREFERENCE: dict[str, Any] = {"batch_size": 32, "epochs": 2, "lr": 1e-3, "sft_weight": 1.0}
"""What DPO and SimPO share."""

PAIR_TASKS = "pair_tasks.jsonl"
"""The tasks that pairs are made of."""

REWRITER: dict[str, Any] = {
    "template": "compact",
    "max_prompt": MODEL["max_prompt"],
    "max_completion": MODEL["max_completion"],
    "precision": "fp32",
    "device": "cpu",
    "schedule": "linear",
    "warmup": 0.05,
    "beta2": 0.95,
    "save_every": 50,
}


def detector(data: Path, out: Path, sizes: Sizes, seed: int) -> DetectorConfig:
    """Small encoder from scratch on dialogues with known values."""
    return DetectorConfig(
        data=(f"jsonl:{data / 'dialogues.jsonl'}",),
        out=out,
        backbone="builtin",
        seed=seed,
        epochs=sizes.scorer_epochs,
        device="cpu",
    )


def translator(data: Path, out: Path, sizes: Sizes, seed: int) -> TranslatorConfig:
    """Small encoder from scratch on instructions with known shifts."""
    return TranslatorConfig(
        data=(f"jsonl:{data / 'instructions.jsonl'}",),
        out=out,
        backbone="builtin",
        seed=seed,
        epochs=sizes.scorer_epochs,
        device="cpu",
    )


def nli(data: Path, out: Path, sizes: Sizes, seed: int) -> NLIConfig:
    """Small cross-encoder with exact-match token types; scores sentence by sentence."""
    epochs = {} if sizes.scorer_epochs is None else {"epochs": sizes.scorer_epochs}
    return NLIConfig(
        data=(f"jsonl:{data / 'nli.jsonl'}",), out=out, seed=seed, device="cpu", **epochs
    )


def base(data: Path, model: Path, out: Path, sizes: Sizes, seed: int) -> SFTConfig:
    """Clean paraphrases by Muon: where copying of facts emerges. Stands in for a pretrained LM."""
    return SFTConfig(
        model=model,
        data=(f"jsonl:{data / 'paraphrases.jsonl'}",),
        out=out,
        seed=seed,
        batch_size=64,
        steps=sizes.base_steps,
        lr=6e-3,
        optimizer="muon",
        muon_lr=0.02,
        **REWRITER,
    )


def sft(data: Path, model: Path, out: Path, sizes: Sizes, seed: int) -> SFTConfig:
    """Imperfect references: targets are learned, and so are the references' faults."""
    return SFTConfig(
        model=model,
        data=(f"jsonl:{data / 'triplets.jsonl'}",),
        out=out,
        seed=seed,
        batch_size=32,
        steps=sizes.sft_steps,
        lr=2e-3,
        optimizer="muon",
        muon_lr=5e-3,
        **REWRITER,
    )


def grpo(data: Path, system: Path, model: Path, out: Path, sizes: Sizes, seed: int) -> GRPOConfig:
    """16 prompts x 8 completions a step, on-policy, a constant length divisor."""
    return GRPOConfig(
        model=model,
        data=(f"jsonl:{data / 'tasks.jsonl'}",),
        out=out,
        seed=seed,
        detector=system / "detector",
        translator=system / "translator",
        fact_analyzer=system / "fact_analyzer",
        batch_size=STEP_PROMPTS * GROUP,
        accumulation=1,
        group_size=GROUP,
        steps=sizes.grpo_steps,
        lr=1.5e-3,
        temperature=TEMPERATURE,
        loss_type="dr_grpo",
        advantage_scale="batch",
        reward=REWARD,
        **REWRITER,
    )


def dpo(data: Path, system: Path, model: Path, out: Path, sizes: Sizes, seed: int) -> DPOConfig:
    """Best against worst of eight samples by GRPO's own reward: as many prompts, completions and
    scores as GRPO has, drawn once from the SFT model instead of on-policy. Without the chosen
    rewrites' cross entropy in the loss, the model learns to say things twice.
    """
    return DPOConfig(
        model=model,
        data=(f"jsonl:{data / PAIR_TASKS}",),
        out=out,
        seed=seed,
        pairs="ranked",
        samples=GROUP,
        temperature=TEMPERATURE,
        detector=system / "detector",
        translator=system / "translator",
        fact_analyzer=system / "fact_analyzer",
        reward=REWARD,
        beta=0.1,
        **PREFERENCE,
        **REWRITER,
    )


def simpo(data: Path, system: Path, model: Path, out: Path, sizes: Sizes, seed: int) -> SimPOConfig:
    """On the pairs that DPO made."""
    return SimPOConfig(
        model=model,
        data=(f"jsonl:{data / PAIR_TASKS}",),
        pair_file=system / "dpo" / PAIR_FILE,
        out=out,
        seed=seed,
        beta=2.0,
        gamma=0.5,
        **PREFERENCE,
        **REWRITER,
    )


def pair_tasks(sizes: Sizes) -> int:
    """How many tasks pairs are made of: as many as GRPO sees."""
    return min(sizes.tasks, STEP_PROMPTS * sizes.grpo_steps)


def described(
    data: Path, out: Path, sizes: Sizes, seed: int, baselines: bool = False
) -> dict[str, Any]:
    """Settings of every stage, for the report."""
    stages = {
        "detector": detector(data, out / "detector", sizes, seed),
        "translator": translator(data, out / "translator", sizes, seed),
        "nli": nli(data, out / "fact_analyzer", sizes, seed),
        "base": base(data, out / "init", out / "base", sizes, seed),
        "sft": sft(data, out / "base", out / "sft", sizes, seed),
        "grpo": grpo(data, out, out / "sft", out / "grpo", sizes, seed),
    }
    if baselines:
        stages |= {
            "dpo": dpo(data, out, out / "sft", out / "dpo", sizes, seed),
            "simpo": simpo(data, out, out / "sft", out / "simpo", sizes, seed),
        }
    return {name: asdict(settings) for name, settings in stages.items()} | {"model": MODEL}
