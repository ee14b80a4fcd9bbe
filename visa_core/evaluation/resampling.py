"""Intervals by bootstrap and paired tests by permutation, over prompts and not over rows.

Rows of the same prompt (several seeds of a method) are no independent observations: they are
averaged to one number a prompt first, and prompts are what is drawn again.
"""

from __future__ import annotations

import numpy as np

DRAWS = 10_000
CHUNK = 500


def bootstrap(
    values: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of n prompts, values [n] (Efron 1979). Raises ValueError for
    none.
    """
    if not len(values):
        raise ValueError("an interval needs at least one observation")
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for start in range(0, draws, CHUNK):
        some = min(CHUNK, draws - start)
        drawn = rng.integers(0, len(values), (some, len(values)))
        means[start : start + some] = values[drawn].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_permutation(differences: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference of 0, differences [n] of n prompts (Fisher's signs).

    Without a true difference the sign of each is a coin's. All 2^n signs where they are no more
    than `draws`, else as many random ones, the observed one counted among them.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) - 1e-9 * np.abs(moved).sum()
    if 2 ** len(moved) <= draws:
        bits = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        return float((np.abs((1 - 2 * bits) @ moved) >= observed).mean())
    rng = np.random.default_rng(seed)
    reached = 0
    for start in range(0, draws, CHUNK):
        some = min(CHUNK, draws - start)
        signs = 1 - 2 * rng.integers(0, 2, (some, len(moved)), dtype=np.int8)
        reached += int((np.abs(signs @ moved) >= observed).sum())
    return (reached + 1) / (draws + 1)
