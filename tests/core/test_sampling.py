"""Truncation and drawing against plain numpy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from visa_core.rollout.sampling import SamplingConfig, draw, truncate


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
    tokens, logprobs = draw(rows, config, torch.Generator().manual_seed(1))
    assert logprobs.dtype == torch.float32
    table = dict(zip(kept, np.log(expected), strict=True))
    assert logprobs.tolist() == pytest.approx([table[token] for token in tokens.tolist()], abs=1e-5)
    counts = np.array([(tokens == token).sum().item() for token in kept])
    assert counts.sum() == n
    if len(kept) > 1:
        assert chisquare(counts, n * expected).pvalue > 1e-4


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
