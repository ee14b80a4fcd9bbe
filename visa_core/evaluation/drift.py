"""Value drift between models: how far each dimension of a profile moved, and how far by chance.

Q questions   D dimensions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

DEFINITION = (
    "A model's profile holds one number a dimension, the mean over its questions. The change of a "
    "dimension is the tuned model's number less the base's on the same questions; value drift is "
    "the mean over dimensions of the changes' absolute values. An absolute value is above 0 even "
    "where nothing changed, because answers are sampled: `by chance` is the drift that is left "
    "when the sign of each question's difference is drawn at random, and p the share of such draws "
    "that reach the measured drift. This definition is the project's own."
)
DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Readings:
    """One model's numbers, question by question."""

    names: tuple[str, ...]
    """Dimensions."""
    values_QD: np.ndarray
    """float64; NaN where a question says nothing of a dimension."""


def judged_readings(record: Mapping[str, Any]) -> Readings:
    """Win rates of `visa values`, each question's in its own dimension."""
    names = tuple(record["dimensions"])
    values_QD = np.full((len(record["questions"]), len(names)), np.nan)
    for row, question in enumerate(record["questions"].values()):
        if question["mean"] is not None:
            values_QD[row, names.index(question["dimension"])] = question["mean"]
    return Readings(names=names, values_QD=values_QD)


def profile(readings: Readings, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Mean of each dimension with a bootstrap interval over questions, and n."""
    rng = np.random.default_rng(seed)
    return {
        name: _mean_record(_known(readings.values_QD[:, d]), rng)
        for d, name in enumerate(readings.names)
    }


def drift(base: Readings, tuned: Readings, seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """The record of one tuned model's drift from the base; see DEFINITION.

    Questions that either model lacks are left out. Raises ValueError when none is common.
    """
    assert base.names == tuned.names
    changes_QD = tuned.values_QD - base.values_QD
    changes_QD = changes_QD[~np.isnan(changes_QD).all(1)]
    if not len(changes_QD):
        raise ValueError("the models have no answered question in common: drift cannot be told")
    rng = np.random.default_rng(seed)
    dimensions = {
        name: _mean_record(_known(changes_QD[:, d]), rng) for d, name in enumerate(base.names)
    }
    measured = mean_absolute(changes_QD)
    flipped = chance_drifts(changes_QD, draws, rng)
    return {
        "drift": measured,
        "by_chance": float(flipped.mean()),
        "p": float((1 + (flipped >= measured - 1e-12).sum()) / (draws + 1)),
        "questions": len(changes_QD),
        "changes": dimensions,
    }


def mean_absolute(changes_QD: np.ndarray) -> float:
    """Mean over dimensions of the absolute mean change."""
    filled, counts_D = np.nan_to_num(changes_QD), (~np.isnan(changes_QD)).sum(0)
    seen = counts_D > 0
    return float(np.abs(filled.sum(0)[seen] / counts_D[seen]).mean())


def chance_drifts(changes_QD: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Drifts with the sign of each question's row drawn at random, [draws]: without a true change
    base and tuned answers could have been swapped (Fisher's signs).
    """
    filled, counts_D = np.nan_to_num(changes_QD), (~np.isnan(changes_QD)).sum(0)
    seen = counts_D > 0
    signs = rng.choice((-1.0, 1.0), size=(draws, len(filled)))
    return np.abs(signs @ filled[:, seen] / counts_D[seen]).mean(1)


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _mean_record(values: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Mean, percentile bootstrap interval (95 %), n; None for both without values."""
    if not len(values):
        return {"mean": None, "interval": None, "n": 0}
    drawn = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)
    interval = [float(x) for x in np.quantile(drawn, (0.025, 0.975))]
    return {"mean": float(values.mean()), "interval": interval, "n": len(values)}
