"""The outer loop's rule: a Gaussian over value vectors moves to the samples that did well.

A reconstruction. The paper says that samples with positive advantage move mean and variance, as in
GRPO, and that the variance anneals; its equations (5) and (6) are not public.

D values of the space   K candidates of an iteration
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visa_core.config.search import RuleConfig


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions, one a value: mean [D] and variance [D]."""

    mean: np.ndarray
    variance: np.ndarray


def update(
    before: Gaussian, candidates_KD: np.ndarray, rewards_K: np.ndarray, rule: RuleConfig
) -> Gaussian:
    """The Gaussian after one iteration's rewards.

    A_i = (r_i - mean r) / std r; over {A_i > 0}, w_i = A_i / sum A:
    mean <- (1 - a) mean + a sum w_i z_i
    variance <- max(floor^2, annealing * ((1 - b) variance + b sum w_i (z_i - mean)^2))
    The second line has the old mean, so that the spread grows along a direction of progress.
    Rewards that are all equal say nothing: the mean stays, the variance anneals.
    """
    weights_K = positive_weights(rewards_K)
    spread = rule.annealing * before.variance
    mean = before.mean
    if weights_K.any():
        mean = (1 - rule.mean_rate) * mean + rule.mean_rate * (weights_K @ candidates_KD)
        seen = weights_K @ (candidates_KD - before.mean) ** 2
        mixed = (1 - rule.variance_rate) * before.variance + rule.variance_rate * seen
        spread = rule.annealing * mixed
    return Gaussian(mean, np.maximum(spread, rule.floor**2))


def positive_weights(rewards_K: np.ndarray) -> np.ndarray:
    """Advantages above 0, scaled to sum to 1, [K]; all 0 where the rewards are equal."""
    above_K = np.maximum(rewards_K - rewards_K.mean(), 0.0)
    scale = np.abs(rewards_K).max(initial=0.0)
    if above_K.max(initial=0.0) <= 1e-12 * scale:  # equal up to rounding
        return np.zeros_like(above_K)
    return above_K / above_K.sum()


def draw(state: Gaussian, candidates: int, bound: float, seed: int, iteration: int) -> np.ndarray:
    """Candidates [K, D] of one iteration, clipped to the bound; a pure function of its arguments.

    They come in pairs mirrored at the mean, which measures directions with less noise.
    """
    generator = np.random.default_rng([seed, iteration])
    half = generator.standard_normal(((candidates + 1) // 2, len(state.mean)))
    steps_KD = np.stack([half, -half], 1).reshape(-1, half.shape[1])[:candidates]
    return np.clip(state.mean + np.sqrt(state.variance) * steps_KD, -bound, bound)
