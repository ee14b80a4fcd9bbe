"""Composite reward of rewrites: do they express the target's values, do they keep the source's
facts.

Pure functions on tensors, and `RewardModel`, which scores a batch with a detector and a fact
analyzer. Shapes: B rewrites, K value dimensions.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from visa_core.config import RewardConfig
from visa_core.types import Consistency
from visa_core.values import cosine
from visa_kernels import dedupe_pairs, reward_scores
from visa_kernels.reward_scores.op import NON_FINITE, RewardScores

REPEAT_WORDS = 4
"""Length of the word n-grams that count as repetition."""


class NonFiniteRewardError(ValueError):
    """A component returned NaN or infinite scores; the message names it and the first rows."""


class NonFiniteRewardWarning(UserWarning):
    """Non-finite scores were replaced by the worst reward; the message counts them."""


class ValueScorer(Protocol):
    """Reads values off responses, [B, K]; a Detector is one."""

    def predict(
        self, queries: list[str], responses: list[str], batch_size: int = 64
    ) -> torch.Tensor: ...


class FactScorer(Protocol):
    """Compares rewrites with their sources; a FactAnalyzer is one."""

    def consistency(
        self, sources: list[str], rewrites: list[str], batch_size: int = 64
    ) -> Consistency: ...


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Learned scores of rewrites: values [B, K], cosine and l2 [B] against the target, consistency;
    blank [B] bool.
    """

    values: torch.Tensor
    cosine: torch.Tensor
    l2: torch.Tensor
    consistency: Consistency
    blank: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """Rewards of a batch and what they are made of.

    reward, cosine, semantic, l2 [B]; values [B, K]; `worst` [B] bool marks rows that got the worst
    reward outright; `non_finite` counts rows whose scores had to be replaced; advantage [B] in the
    groups that were asked for, None without.
    """

    reward: torch.Tensor
    cosine: torch.Tensor
    semantic: torch.Tensor
    consistency: Consistency
    values: torch.Tensor
    l2: torch.Tensor
    worst: torch.Tensor
    non_finite: int = 0
    advantage: torch.Tensor | None = None


def published_mixture(fwd: torch.Tensor, bwd: torch.Tensor) -> torch.Tensor:
    """(2 fwd + bwd) / 3, which reproduces every published row to 1e-4."""
    return (2 * fwd + bwd) / 3


def semantic_term(consistency: Consistency, kind: str) -> torch.Tensor:
    """The semantic part of the reward, [B] in [0, 1]: "geometric", "min" or "published"."""
    if kind == "geometric":
        return (consistency.fwd * consistency.bwd).clamp_min(0).sqrt()
    if kind == "min":
        return torch.minimum(consistency.fwd, consistency.bwd)
    if kind == "published":
        return published_mixture(consistency.fwd, consistency.bwd)
    raise ValueError(f'consistency is "geometric", "min" or "published", not {kind!r}')


def combine(value: torch.Tensor, semantic: torch.Tensor, config: RewardConfig) -> torch.Tensor:
    """Reward [B] from the value cosine [B] in [-1, 1] and the semantic term [B] in [0, 1]."""
    if config.form == "product":
        return ((1 + value) / 2) ** config.w_val * semantic**config.w_sem
    if config.form == "gated":
        value = torch.where(semantic >= config.gate, value, -torch.ones_like(value))
    return config.w_val * value + config.w_sem * semantic


def worst_reward(config: RewardConfig) -> float:
    """The least that `combine` can return: what empty, unfinished and unscorable rewrites get, and
    where penalties stop.
    """
    return 0.0 if config.form == "product" else -config.w_val


def repeated_share(text: str, n: int = REPEAT_WORDS) -> float:
    """Share of the word n-grams of `text` that occurred in it before; 0 for texts shorter than n
    words.
    """
    words = text.lower().split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = grams.total()
    return (total - len(grams)) / total if total else 0.0


def measure(
    detector: ValueScorer,
    fact_analyzer: FactScorer,
    queries: Sequence[str],
    sources: Sequence[str],
    rewrites: Sequence[str],
    targets: torch.Tensor,
    batch_size: int = 64,
) -> Measured:
    """Learned scores of `rewrites` against `targets` [B, K]; equal rows are scored once.

    A blank rewrite is not shown to the models: its values are 0 and both directions of its
    consistency are 0. `batch_size` bounds the batches of encoders that need padding; others are
    packed to a budget of tokens.
    """
    values, fwd, bwd, blank = _learned(
        detector, fact_analyzer, queries, sources, rewrites, targets, batch_size
    )
    return Measured(
        values=values,
        cosine=cosine(values, targets),
        l2=torch.linalg.vector_norm(values - targets, dim=-1),
        consistency=Consistency(fwd=fwd, bwd=bwd, mean=published_mixture(fwd, bwd)),
        blank=blank,
    )


def _learned(
    detector: ValueScorer,
    fact_analyzer: FactScorer,
    queries: Sequence[str],
    sources: Sequence[str],
    rewrites: Sequence[str],
    targets: torch.Tensor,
    batch_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the models say: values [B, K], fwd and bwd [B]; and which rewrites are blank."""
    _check_rows(queries, sources, rewrites, targets)
    blank = torch.tensor([not text.strip() for text in rewrites], dtype=torch.bool)
    values = torch.zeros_like(targets, dtype=torch.float32)
    fwd, bwd = torch.zeros(len(rewrites)), torch.zeros(len(rewrites))
    if not blank.all():
        told = [row for row, text in enumerate(rewrites) if text.strip()]
        asked, answers, row_of = _distinct(queries, rewrites, told)
        values[~blank] = detector.predict(asked, answers, batch_size=batch_size).float()[row_of]
        premises, hypotheses, row_of = _distinct(sources, rewrites, told)
        scores = fact_analyzer.consistency(premises, hypotheses, batch_size=batch_size)
        fwd[~blank], bwd[~blank] = scores.fwd.float()[row_of], scores.bwd.float()[row_of]
    return values, fwd, bwd, blank


def _distinct(
    firsts: Sequence[str], seconds: Sequence[str], rows: Sequence[int]
) -> tuple[list[str], list[str], torch.Tensor]:
    """The distinct pairs among `rows`, in order of first occurrence, and which one each row is."""
    a, b = [firsts[row] for row in rows], [seconds[row] for row in rows]
    unique = dedupe_pairs(a, b)
    kept = unique.first.tolist()
    return [a[i] for i in kept], [b[i] for i in kept], torch.from_numpy(unique.inverse)


def _check_rows(
    queries: Sequence[str], sources: Sequence[str], rewrites: Sequence[str], targets: torch.Tensor
) -> None:
    counts = {
        "queries": len(queries),
        "sources": len(sources),
        "rewrites": len(rewrites),
        "targets": len(targets),
    }
    if len(set(counts.values())) != 1:
        raise ValueError(f"rows to score do not match: {counts}")
    bad = (
        (~torch.isfinite(targets)).any(dim=-1).nonzero().flatten().tolist() if len(targets) else []
    )
    if bad:
        raise NonFiniteRewardError(
            f"the targets of {len(bad)} of {len(targets)} rows are not finite (first rows: "
            f"{bad[:5]}); check the detector and the translator that made them"
        )


class RewardModel:
    """Scores rewrites with a frozen detector and fact analyzer."""

    def __init__(
        self,
        detector: ValueScorer,
        fact_analyzer: FactScorer,
        config: RewardConfig | None = None,
    ) -> None:
        self.detector = detector
        self.fact_analyzer = fact_analyzer
        self.config = config or RewardConfig()

    def score(
        self,
        queries: Sequence[str],
        sources: Sequence[str],
        rewrites: Sequence[str],
        targets: torch.Tensor,
        finished: torch.Tensor | None = None,
        *,
        group_size: int | None = None,
    ) -> RewardOutput:
        """Rewards of B rewrites against targets [B, K]; `finished` [B] bool marks those not cut at
        the limit; `group_size` adjacent rewrites are a group, whose advantages are wanted too.

        Blank rewrites get the worst reward, unfinished ones what the settings say. Raises
        NonFiniteRewardError when a component returns NaN or infinity, unless the settings replace
        such rows.
        """
        config = self.config
        values, fwd, bwd, blank = _learned(
            self.detector,
            self.fact_analyzer,
            queries,
            sources,
            rewrites,
            targets,
            config.batch_size,
        )
        cut = torch.zeros_like(blank) if finished is None else ~finished.bool().cpu()
        worst = blank | cut if config.unfinished == "worst" else blank
        scores = reward_scores(
            values,
            targets.float(),
            fwd,
            bwd,
            group_size=group_size,
            penalty=self._penalty(rewrites, cut),
            worst=worst,
            form=config.form,
            consistency=config.consistency,
            w_val=config.w_val,
            w_sem=config.w_sem,
            gate=config.gate,
            neutral_norm=config.neutral_norm,
            distance_weight=config.distance_weight,
            non_finite="worst",
        )
        broken = self._broken_rows(scores, rewrites)
        return RewardOutput(
            reward=scores.reward,
            cosine=scores.cosine,
            semantic=scores.semantic,
            consistency=Consistency(fwd=fwd, bwd=bwd, mean=published_mixture(fwd, bwd)),
            values=values,
            l2=scores.l2,
            worst=worst | broken,
            non_finite=int(broken.sum()),
            advantage=scores.advantage,
        )

    def _penalty(self, rewrites: Sequence[str], cut: torch.Tensor) -> torch.Tensor | None:
        """What is taken off each reward [B]; None where nothing can be."""
        config = self.config
        off = None
        if config.repetition_weight:
            share = torch.tensor([repeated_share(text) for text in rewrites])
            off = config.repetition_weight * share
        if config.unfinished == "penalty" and cut.any():
            late = config.unfinished_penalty * cut.float()
            off = late if off is None else off + late
        return off

    def _broken_rows(self, scores: RewardScores, rewrites: Sequence[str]) -> torch.Tensor:
        parts = {
            "detector": NON_FINITE["values"],
            "fact analyzer": NON_FINITE["fwd"] | NON_FINITE["bwd"],
        }
        for name, bits in parts.items():
            bad = (scores.non_finite & bits) != 0
            if bad.any() and self.config.non_finite == "raise":
                raise NonFiniteRewardError(_complaint(name, bad, rewrites))
        broken = scores.non_finite != 0
        if broken.any():
            warnings.warn(
                f"{int(broken.sum())} of {len(rewrites)} rewrites had non-finite scores and got "
                "the worst reward",
                NonFiniteRewardWarning,
                stacklevel=3,
            )
        return broken


def _complaint(component: str, bad: torch.Tensor, rewrites: Sequence[str]) -> str:
    rows = bad.nonzero().flatten().tolist()
    shown = "; ".join(f"row {row}: {rewrites[row][:60]!r}" for row in rows[:3])
    return (
        f"the {component} returned NaN or infinite scores for {len(rows)} of {len(rewrites)} "
        f"rewrites ({shown}). Its weights are damaged or overflowed: train or load it again. "
        "The step was not taken."
    )
