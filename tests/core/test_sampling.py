"""Truncation and drawing against plain numpy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from visa_core.rollout.sampling import (
    SamplingConfig,
    draw,
    inverse_cdf,
    row_seed,
    truncate,
    uniforms,
)


def kept_by_hand(logits: np.ndarray, top_k: int, min_p: float, top_p: float) -> set[int]:
    """Tokens that stay, one rule after the other, each on what the one before left."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if top_k:
        order = order[:top_k]
    if min_p:
        best = logits[order[0]]
        order = [token for token in order if np.exp(logits[token] - best) >= min_p]
    weights = np.exp(logits[order] - logits[order[0]])
    kept, mass = [], 0.0
    for token, share in zip(order, weights / weights.sum(), strict=True):
        if mass >= top_p and top_p < 1:
            break
        kept.append(token)
        mass += share
    return set(kept)


def random_logits(seed: int, size: int = 17) -> np.ndarray:
    """Distinct logits, apart enough that float32 puts none on the other side of a threshold."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.linspace(-4, 3, size) + rng.uniform(-0.1, 0.1, size))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    top_k=st.sampled_from([0, 1, 2, 5, 16, 17, 50]),
    min_p=st.sampled_from([0.0, 0.03, 0.3, 0.99]),
    top_p=st.sampled_from([0.01, 0.33, 0.777, 0.951, 1.0]),
)
def test_truncation(seed: int, top_k: int, min_p: float, top_p: float) -> None:
    logits = random_logits(seed)
    config = SamplingConfig(top_k=top_k, min_p=min_p, top_p=top_p)
    result = truncate(torch.tensor(logits, dtype=torch.float32)[None], config)[0]
    kept = set(result.isfinite().nonzero()[:, 0].tolist())
    assert kept == kept_by_hand(logits, top_k, min_p, top_p)
    assert result[result.isfinite()].tolist() == pytest.approx(
        [logits[token] for token in sorted(kept)], rel=1e-6
    )


def test_rows_are_truncated_each_by_itself() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0], [0.0, 0.0, 5.0, 4.9]])
    kept = truncate(logits, SamplingConfig(top_p=0.6)).isfinite()
    assert kept.tolist() == [[True, False, False, False], [False, False, True, True]]


def test_the_most_probable_token_always_stays() -> None:
    config = SamplingConfig(top_k=1, min_p=0.999, top_p=1e-6)
    kept = truncate(torch.randn(50, 9), config).isfinite()
    assert kept.sum(1).tolist() == [1] * 50


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"temperature": 1.7, "top_p": 0.8}, {"top_k": 3, "min_p": 0.05}],
)
def test_drawn_tokens_follow_the_distribution_whose_logprob_is_given(options: dict) -> None:
    config = SamplingConfig(**options)
    logits, n = random_logits(3, 8), 4000
    scaled = logits / config.temperature
    kept = sorted(kept_by_hand(scaled, config.top_k, config.min_p, config.top_p))
    expected = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum()
    rows = torch.tensor(logits, dtype=torch.float32).repeat(n, 1)
    tokens, logprobs = draw(rows, config, uniforms(torch.arange(n), 1)[:, 0])
    assert logprobs.dtype == torch.float32
    table = dict(zip(kept, np.log(expected), strict=True))
    assert logprobs.tolist() == pytest.approx([table[token] for token in tokens.tolist()], abs=1e-5)
    counts = np.array([(tokens == token).sum().item() for token in kept])
    assert counts.sum() == n
    if len(kept) > 1:
        assert chisquare(counts, n * expected).pvalue > 1e-4


@pytest.mark.parametrize("vocabulary", [1, 3, 64, 200, 1000])
def test_the_inverse_of_the_cumulative_distribution(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    probs = rng.dirichlet(np.full(vocabulary, 0.1), 300).astype(np.float32)
    probs[:, rng.random(vocabulary) < 0.3] = 0
    probs[:, rng.integers(vocabulary)] = 0.5
    at = np.concatenate([[0.0, np.nextafter(1, 0), 1 - 1e-9], rng.random(297)])
    found = inverse_cdf(torch.tensor(probs), torch.tensor(at)).numpy()
    assert (probs[np.arange(300), found] > 0).all(), "what has no probability is never drawn"
    cdf = probs.astype(np.float64).cumsum(1)
    share = cdf / cdf[:, -1:]
    above = share[np.arange(300), found]
    below = above - probs[np.arange(300), found] / cdf[:, -1]
    assert (below <= at + 1e-6).all() and (above > at - 1e-6).all()


def test_numbers_of_rows_are_splitmix64_and_uniform() -> None:
    def by_hand(seed: int, position: int) -> float:
        x = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return ((x ^ (x >> 31)) >> 11) / 2**53

    seeds = [row_seed(s, g, c) for s in (0, 7) for g in (0, 5) for c in range(8)]
    assert len(set(seeds)) == len(seeds)
    found = uniforms(torch.tensor(seeds), 300)
    assert found.dtype == torch.float64 and 0 <= found.min() and found.max() < 1
    for row in (0, 9, 31):
        assert found[row, :5].tolist() == [by_hand(seeds[row], t) for t in range(5)]
    counts = np.histogram(found.numpy(), bins=20, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 1e-4
    centred = found - 0.5
    assert abs(float((centred[:-1] * centred[1:]).mean()) * 12) < 0.05, "rows do not correlate"
    assert abs(float((centred[:, :-1] * centred[:, 1:]).mean()) * 12) < 0.05, "nor positions"


def test_greedy_takes_the_best_token_and_gives_its_full_logprob() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [-1.0, -2.0, -0.5]])
    tokens, logprobs = draw(logits, SamplingConfig(temperature=0, top_k=1), None)
    assert tokens.tolist() == [1, 2]
    for row, best, logprob in zip(logits.double().numpy(), (1, 2), logprobs, strict=True):
        assert logprob.item() == pytest.approx(row[best] - np.log(np.exp(row).sum()), abs=1e-6)


def test_half_precision_logits_are_drawn_in_single() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    _, logprobs = draw(logits, SamplingConfig(temperature=0), None)
    assert logprobs.item() == pytest.approx(-np.log(1 + np.exp(-1) + np.exp(-2)), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be >= 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.1}, "top_p must lie in"),
        ({"top_k": -1}, "top_k must be >= 0"),
        ({"min_p": 1.0}, "min_p in"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_senseless_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)
