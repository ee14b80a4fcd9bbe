"""Score methods on the same prompts: what each rewrote, how well, and whether the scores can be
believed.

The copy baseline (the rewrite is the source) is always there: its consistency is 1, so a system
that only copies is visible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from visa_core.config import EvaluationConfig
from visa_core.evaluation.metrics import summarise, summarise_truth
from visa_core.evaluation.warnings import hack_warnings
from visa_core.rewards import FactScorer, Measured, ValueScorer, measure, repeated_share
from visa_core.types import RewriteExample
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ

Rewrites = Sequence[str] | Callable[[Sequence[RewriteExample], torch.Tensor], Sequence[str]]
"""Rewrites of all examples in their order, or a function of (examples, targets [N, K]) that makes
them.
"""


class Truth(Protocol):
    """What is known by construction about one rewrite against its source and target [K].

    Keys: fwd, bwd, consistency, l2, cos, facts_kept, facts_added, repeated, unparsable.
    """

    def __call__(self, source: str, rewrite: str, target: torch.Tensor) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method on all prompts: its rewrites, their learned scores, the figures, and the seconds
    it took to rewrite.
    """

    rewrites: list[str]
    measured: Measured
    summary: dict[str, Any]
    seconds: float
    truth: list[Mapping[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All methods on the same examples. targets, source_values [N, K]; warnings are sentences for
    people.
    """

    examples: list[RewriteExample]
    targets: torch.Tensor
    source_values: torch.Tensor
    methods: dict[str, MethodResult]
    space: ValueSpace = field(default_factory=lambda: SCHWARTZ)
    warnings: list[str] = field(default_factory=list)

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Figures of every method by name."""
        return {name: result.summary for name, result in self.methods.items()}


def example_targets(
    examples: Sequence[RewriteExample], space: ValueSpace = SCHWARTZ
) -> torch.Tensor:
    """Targets [N, K] that the examples carry; raises ValueError naming the first example without
    one.
    """
    for row, example in enumerate(examples):
        if example.target is None:
            raise ValueError(f"example {example.id or row} has no target to evaluate against")
    return space.matrix([example.target for example in examples])[0]


def evaluate(
    examples: Sequence[RewriteExample],
    targets: torch.Tensor,
    methods: Mapping[str, Rewrites],
    detector: ValueScorer,
    fact_analyzer: FactScorer,
    config: EvaluationConfig | None = None,
    *,
    space: ValueSpace = SCHWARTZ,
    truth: Truth | None = None,
) -> Evaluation:
    """Score every method, and the copy baseline first, against targets [N, K].

    The same method at another temperature is another entry ("grpo" and "grpo_greedy"). With
    `truth`, the figures known by construction stand beside the learned ones. Raises ValueError for
    no examples, rows that do not match, or a method named "copy".
    """
    config = config or EvaluationConfig()
    examples = list(examples)
    _check(examples, targets, methods, space)
    everything: dict[str, Rewrites] = {
        "copy": [example.response for example in examples],
        **methods,
    }
    scorer = _Scorer(examples, targets, detector, fact_analyzer, config, space, truth)
    results = {name: scorer.score(name, rewrites) for name, rewrites in everything.items()}
    summaries = {name: result.summary for name, result in results.items()}
    return Evaluation(
        examples=examples,
        targets=targets,
        source_values=results["copy"].measured.values,
        methods=results,
        space=space,
        warnings=hack_warnings(summaries, reference_length(examples), config),
    )


def reference_length(examples: Sequence[RewriteExample]) -> float:
    """Mean words of the references, or of the responses where an example has no reference."""
    texts = [example.reference or example.response for example in examples]
    return sum(len(text.split()) for text in texts) / len(texts)


@dataclass(frozen=True)
class _Scorer:
    examples: list[RewriteExample]
    targets: torch.Tensor
    detector: ValueScorer
    fact_analyzer: FactScorer
    config: EvaluationConfig
    space: ValueSpace
    truth: Truth | None

    def score(self, name: str, rewrites: Rewrites) -> MethodResult:
        start = time.perf_counter()
        texts = list(rewrites(self.examples, self.targets) if callable(rewrites) else rewrites)
        seconds = time.perf_counter() - start
        if len(texts) != len(self.examples):
            raise ValueError(
                f"method {name!r} gave {len(texts)} rewrites for {len(self.examples)} examples"
            )
        sources = [example.response for example in self.examples]
        measured = measure(
            self.detector,
            self.fact_analyzer,
            [example.query for example in self.examples],
            sources,
            texts,
            self.targets,
            self.config.batch_size,
        )
        summary = summarise(measured, self.targets, self.space.names, self.config)
        summary |= text_stats(texts)
        known = None
        if self.truth is not None:
            rows = zip(sources, texts, self.targets, strict=True)
            known = [self.truth(source, text, target) for source, text, target in rows]
            summary |= summarise_truth(known, self.config)
        return MethodResult(
            rewrites=texts, measured=measured, summary=summary, seconds=seconds, truth=known
        )


def text_stats(texts: Sequence[str]) -> dict[str, float]:
    """Figures of the texts alone: mean words, share of empty ones, share of word 4-grams said
    again.
    """
    count = len(texts)
    return {
        "length_mean": sum(len(text.split()) for text in texts) / count,
        "empty_share": sum(not text.strip() for text in texts) / count,
        "repeated_ngrams": sum(repeated_share(text) for text in texts) / count,
    }


def _check(
    examples: list[RewriteExample],
    targets: torch.Tensor,
    methods: Mapping[str, Rewrites],
    space: ValueSpace,
) -> None:
    if not examples:
        raise ValueError("nothing to evaluate: there are no examples")
    if tuple(targets.shape) != (len(examples), space.size):
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, but there are {len(examples)} examples "
            f"and {space.size} values in space {space.name!r}"
        )
    if "copy" in methods:
        raise ValueError(
            '"copy" is the baseline that every evaluation adds; name the method otherwise'
        )
