"""From rows to the figures of every model and method: means, intervals, paired tests.

Means and standard deviations are over rows (all prompts of all seeds), as published tables have
them; intervals and tests are over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visa_core.config import EvaluationConfig
from visa_core.evaluation.evaluate import text_stats
from visa_core.evaluation.methods.rows import COPY, Row
from visa_core.evaluation.metrics import joint_success, summarise, summarise_truth
from visa_core.evaluation.resampling import bootstrap, paired_permutation
from visa_core.evaluation.warnings import hack_warnings
from visa_core.rewards import Measured, published_mixture
from visa_core.types import Consistency
from visa_core.value_space import ValueSpace
from visa_core.values import cosine

BETTER = {"jsr": 1, "consistency": 1, "l2": -1, "cos": 1, "mad": -1, "edit": 0}
"""Per-prompt metrics; 1 where more is better, -1 where less is, 0 where neither."""
TESTED = ("jsr", "consistency", "l2", "mad")


@dataclass(frozen=True)
class Columns:
    """The rows of one method of one model as tensors, B rows."""

    rows: Sequence[Row]
    measured: Measured
    targets: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Columns:
        """Tensors of the rows."""
        values = torch.tensor([row.values for row in rows], dtype=torch.float64)
        targets = torch.tensor([row.target for row in rows], dtype=torch.float64)
        fwd = torch.tensor([row.fwd for row in rows], dtype=torch.float64)
        bwd = torch.tensor([row.bwd for row in rows], dtype=torch.float64)
        measured = Measured(
            values=values,
            cosine=cosine(values, targets),
            l2=torch.linalg.vector_norm(values - targets, dim=-1),
            consistency=Consistency(fwd=fwd, bwd=bwd, mean=published_mixture(fwd, bwd)),
            blank=torch.tensor([not row.rewrite.strip() for row in rows]),
        )
        return cls(rows, measured, targets)

    def per_row(self, limits: EvaluationConfig) -> dict[str, torch.Tensor]:
        """Every metric of BETTER, [B] float64."""
        found = self.measured
        mixture = found.consistency.mean
        return {
            "jsr": joint_success(found.l2, mixture, limits).double(),
            "consistency": mixture,
            "l2": found.l2,
            "cos": found.cosine,
            "mad": (found.values - self.targets).abs().mean(-1),
            "edit": torch.tensor([row.edit for row in self.rows], dtype=torch.float64),
        }

    def per_prompt(self, limits: EvaluationConfig) -> dict[str, dict[str, float]]:
        """Every metric by prompt, the rows of a prompt averaged."""
        owners: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            owners.setdefault(row.prompt, []).append(i)
        return {
            name: {key: float(column[own].mean()) for key, own in owners.items()}
            for name, column in self.per_row(limits).items()
        }


def sign_matches(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Values whose sign is the target's, of K, [B] int64; both on the grid of half steps, so that
    what is nearer to 0 than a quarter counts as 0.
    """
    signs = [torch.sign((x * 2).round()) for x in (values, targets)]
    return (signs[0] == signs[1]).sum(-1)


def summarise_rows(
    rows: Sequence[Row], space: ValueSpace, limits: EvaluationConfig, ours: str
) -> dict[str, Any]:
    """The record behind all tables and figures.

    models -> methods -> figures, where every method has `ci` (95 %, over prompts) and `seeds`
    (joint success by system); tests: `ours` against the best other method, copy left aside.
    """
    groups = _groups(rows)
    columns = {
        model: {method: Columns.of(own) for method, own in methods.items()}
        for model, methods in groups.items()
    }
    models = {
        model: {method: _figures(c, space, limits) for method, c in methods.items()}
        for model, methods in columns.items()
    }
    tests = {
        model: found
        for model, methods in columns.items()
        if (found := compare(methods, limits, ours))
    }
    warnings = [
        f"{model}: {sentence}"
        for model, methods in models.items()
        for sentence in hack_warnings(methods, _source_length(groups[model]), limits)
    ]
    return {"models": models, "tests": tests, "warnings": warnings, "ours": ours}


def _groups(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by model and method, the copy of each model's systems first."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.model, {}).setdefault(row.method, []).append(row)
    return {
        model: dict(sorted(methods.items(), key=lambda item: item[0] != COPY))
        for model, methods in groups.items()
    }


def _source_length(methods: dict[str, list[Row]]) -> float:
    lengths = [len(row.source.split()) for own in methods.values() for row in own]
    return sum(lengths) / len(lengths)


def _figures(c: Columns, space: ValueSpace, limits: EvaluationConfig) -> dict[str, Any]:
    texts = [row.rewrite for row in c.rows]
    by_prompt = c.per_prompt(limits)
    seeds: dict[str, list[float]] = {}
    for row, success in zip(c.rows, c.per_row(limits)["jsr"].tolist(), strict=True):
        seeds.setdefault(row.system, []).append(success)
    found: dict[str, Any] = summarise(c.measured, c.targets, space.names, limits)
    found |= text_stats(texts)
    truths = [row.truth for row in c.rows if row.truth is not None]
    if len(truths) == len(c.rows):
        found |= summarise_truth(truths, limits)
    matches = sign_matches(c.measured.values, c.targets)
    counts = torch.bincount(matches, minlength=space.size + 1).tolist()
    return found | {
        "prompts": len(by_prompt["jsr"]),
        "parameters": max(row.parameters for row in c.rows),
        "unfinished_share": sum(not row.finished for row in c.rows) / len(c.rows),
        "edit_mean": float(np.mean([row.edit for row in c.rows])),
        "edit_std": float(np.std([row.edit for row in c.rows])),
        "unchanged_share": sum(row.edit == 0 for row in c.rows) / len(c.rows),
        "sign_matches_mean": float(matches.double().mean()),
        "sign_matches": counts,
        "ci": {name: list(bootstrap(_array(column))) for name, column in by_prompt.items()},
        "seeds": {system: float(np.mean(values)) for system, values in seeds.items()},
    }


def compare(
    methods: dict[str, Columns], limits: EvaluationConfig, ours: str
) -> dict[str, dict[str, Any]]:
    """Paired tests by metric of `ours` against the best other method by that metric, on the
    prompts that both have; {} where there is nothing to compare.

    The copy is no candidate: it wins consistency by saying nothing new, which its own line shows.
    """
    others = [name for name in methods if name not in (ours, COPY)]
    if ours not in methods or not others:
        return {}
    columns = {name: methods[name].per_prompt(limits) for name in (ours, *others)}
    found = {}
    for metric in TESTED:
        sign = BETTER[metric]
        means = {name: float(_array(columns[name][metric]).mean()) for name in others}
        best = max(means, key=lambda name: sign * means[name])
        mine, theirs = columns[ours][metric], columns[best][metric]
        shared = [key for key in mine if key in theirs]
        if not shared:
            continue
        differences = np.array([mine[key] - theirs[key] for key in shared])
        found[metric] = {
            "baseline": best,
            "n": len(shared),
            "difference": float(differences.mean()),
            "ci": list(bootstrap(differences)),
            "p": paired_permutation(differences),
            "worse": sign * float(differences.mean()) < 0,
        }
    return found


def _array(column: dict[str, float]) -> np.ndarray:
    return np.array(list(column.values()))
