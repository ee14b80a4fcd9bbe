"""Metrics of rewrites, as pure functions on tensors. B prompts, K value dimensions.

Standard deviations are over prompts and divide by B (not B - 1), so that one prompt gives 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from visa_core.config import EvaluationConfig
from visa_core.rewards import Measured, published_mixture
from visa_core.values import cosine

VACUOUS_BELOW = 0.1
"""Entailment in one direction below which a rewrite lost (or invented) nearly everything."""


def joint_success(
    l2: torch.Tensor, consistency: torch.Tensor, config: EvaluationConfig | None = None
) -> torch.Tensor:
    """Rows [B] bool that are near the target and consistent with the source, both."""
    limits = config or EvaluationConfig()
    return (l2 < limits.l2_below) & (consistency > limits.consistency_above)


def mean_std(name: str, values: torch.Tensor) -> dict[str, float]:
    """{name_mean, name_std} over prompts; values [B], B > 0."""
    values = values.double()
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(values.std(correction=0)),
    }


def consistency_stats(fwd: torch.Tensor, bwd: torch.Tensor) -> dict[str, float]:
    """Mean and std of fwd, bwd and of the published mixture, from [B] each."""
    return {
        **mean_std("consistency", published_mixture(fwd, bwd)),
        **mean_std("fwd", fwd),
        **mean_std("bwd", bwd),
    }


def value_stats(values: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Mean and std of the L2 distance and of the cosine, from [B, K] each."""
    return {
        **mean_std("l2", torch.linalg.vector_norm(values.double() - targets.double(), dim=-1)),
        **mean_std("cos", cosine(values.double(), targets.double())),
    }


def dimension_errors(
    values: torch.Tensor, targets: torch.Tensor, names: Sequence[str]
) -> dict[str, float | dict[str, float]]:
    """Errors by dimension from [B, K]: mean absolute, mean signed, and `mad`, the mean of the
    absolute ones over dimensions.
    """
    error = values.double() - targets.double()
    absolute = error.abs().mean(dim=0)
    return {
        "mad": float(absolute.mean()),
        "mad_per_dimension": dict(zip(names, absolute.tolist(), strict=True)),
        "bias_per_dimension": dict(zip(names, error.mean(dim=0).tolist(), strict=True)),
    }


def vacuous_share(
    fwd: torch.Tensor, bwd: torch.Tensor, config: EvaluationConfig | None = None
) -> float:
    """Share of rows that pass the consistency threshold although one direction is near 0.

    The published mixture pays 1/3 for a rewrite without any fact (bwd 1, fwd 0), which passes 0.3.
    """
    limits = config or EvaluationConfig()
    passing = published_mixture(fwd, bwd) > limits.consistency_above
    return float((passing & (torch.minimum(fwd, bwd) < VACUOUS_BELOW)).double().mean())


def summarise(
    measured: Measured,
    targets: torch.Tensor,
    names: Sequence[str],
    config: EvaluationConfig | None = None,
) -> dict[str, float | int | dict[str, float]]:
    """All learned metrics of one method. `jsr` is the joint success rate; raises ValueError without
    rows.
    """
    if not len(targets):
        raise ValueError("nothing to evaluate: the method has no rewrites")
    consistency = measured.consistency
    mixture = published_mixture(consistency.fwd, consistency.bwd)
    return {
        "n": len(targets),
        **consistency_stats(consistency.fwd, consistency.bwd),
        **value_stats(measured.values, targets),
        "jsr": float(joint_success(measured.l2, mixture, config).double().mean()),
        **dimension_errors(measured.values, targets, names),
        "vacuous_share": vacuous_share(consistency.fwd, consistency.bwd, config),
    }


def summarise_truth(
    rows: Sequence[Mapping[str, float]], config: EvaluationConfig | None = None
) -> dict[str, float]:
    """Metrics known by construction, from the truth about every rewrite; all keys begin with true_.

    Besides the learned metrics' counterparts: true_facts_kept (share), true_facts_added and
    true_repeated (counts per rewrite), true_repeated_share (share of rewrites that repeat
    anything), true_unparsable (share of sentences).
    """
    columns = {
        key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in rows[0]
    }
    success = joint_success(columns["l2"], columns["consistency"], config)
    return {
        **{f"true_{k}": v for k, v in consistency_stats(columns["fwd"], columns["bwd"]).items()},
        **{f"true_{k}": v for k, v in mean_std("l2", columns["l2"]).items()},
        **{f"true_{k}": v for k, v in mean_std("cos", columns["cos"]).items()},
        "true_jsr": float(success.double().mean()),
        "true_facts_kept": float(columns["facts_kept"].mean()),
        "true_facts_added": float(columns["facts_added"].mean()),
        "true_repeated": float(columns["repeated"].mean()),
        "true_repeated_share": float((columns["repeated"] > 0).double().mean()),
        "true_unparsable": float(columns["unparsable"].mean()),
    }
