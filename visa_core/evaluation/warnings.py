"""Signs of reward hacking: scores that look good for a reason that is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visa_core.config import EvaluationConfig

UNTRAINED = ("copy",)
"""Methods that are baselines by design and need no warning."""


def hack_warnings(
    summaries: Mapping[str, Mapping[str, Any]],
    reference_length: float,
    config: EvaluationConfig | None = None,
) -> list[str]:
    """One sentence for each sign that a method's figures should not be believed; [] when there is
    none.

    reference_length: mean words that rewrites should have.
    """
    config = config or EvaluationConfig()
    found = []
    for name, summary in summaries.items():
        if name not in UNTRAINED:
            signs = [
                *_directions(summary, config),
                *_length(summary, reference_length, config),
                *_truth(summary, config),
            ]
            found += [f"{name}: {sign}" for sign in signs]
    return found


def _directions(summary: Mapping[str, Any], config: EvaluationConfig) -> list[str]:
    fwd, bwd = summary["fwd_mean"], summary["bwd_mean"]
    signs = []
    if abs(fwd - bwd) > config.direction_gap:
        signs.append(
            f"fwd {fwd:.2f} and bwd {bwd:.2f} are far apart ({_cause(summary)}), which the "
            f"published mixture {summary['consistency_mean']:.2f} hides"
        )
    if summary["vacuous_share"] > 0.1:
        signs.append(
            f"{summary['vacuous_share']:.0%} of the rewrites pass the consistency threshold "
            "although one direction of entailment is near 0, as it is for a text without facts"
        )
    return signs


def _cause(summary: Mapping[str, Any]) -> str:
    """What a gap between the directions comes from: the truth tells, or else which one is larger.

    An analyzer set to the other reading has fwd and bwd the other way round, so without the truth
    the sentence says which reading it takes.
    """
    if "true_facts_kept" in summary:
        dropped = 1 - summary["true_facts_kept"] > summary["true_facts_added"]
        return "facts are dropped" if dropped else "facts are invented"
    guess = "dropped" if summary["bwd_mean"] > summary["fwd_mean"] else "invented"
    return f"facts are {guess}, if fwd is how far the rewrite entails its source"


def _length(
    summary: Mapping[str, Any], reference_length: float, config: EvaluationConfig
) -> list[str]:
    signs = []
    growth = summary["length_mean"] / max(reference_length, 1e-9)
    if growth > config.length_growth:
        signs.append(
            f"rewrites have {summary['length_mean']:.1f} words on average, {growth:.2f} times the "
            f"expected {reference_length:.1f}"
        )
    if summary["repeated_ngrams"] > config.repeated_share:
        signs.append(f"{summary['repeated_ngrams']:.0%} of the word 4-grams are repetitions")
    return signs


def _truth(summary: Mapping[str, Any], config: EvaluationConfig) -> list[str]:
    if "true_jsr" not in summary:
        return []
    signs = []
    if abs(summary["jsr"] - summary["true_jsr"]) > config.truth_gap:
        signs.append(
            f"learned joint success {summary['jsr']:.2f} against {summary['true_jsr']:.2f} known "
            "by construction: the learned scores cannot be believed on these texts"
        )
    if summary["true_repeated_share"] > config.repeated_share:
        signs.append(
            f"{summary['true_repeated_share']:.0%} of the rewrites say a fact or a value clause "
            "twice"
        )
    passes = summary["consistency_mean"] > config.consistency_above
    if summary["true_facts_kept"] < config.facts_kept and passes:
        signs.append(
            f"only {summary['true_facts_kept']:.0%} of the facts are kept while the learned "
            f"consistency {summary['consistency_mean']:.2f} passes"
        )
    return signs
