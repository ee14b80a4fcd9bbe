"""Log-probabilities and entropies against float64 numpy, extreme logits, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visa_kernels import token_logprobs


def by_hand(logits: np.ndarray, ids: np.ndarray, temperature: float) -> tuple[list, list]:
    """One row at a time, in float64, from exact sums of probabilities."""
    logprobs, entropies = [], []
    for row, token in zip(logits.astype(np.float64), ids, strict=True):
        scaled = row / temperature
        weights = np.exp(scaled - scaled.max())
        p = weights / weights.sum()
        logprobs.append(scaled[token] - scaled.max() - np.log(weights.sum()))
        entropies.append(-sum(q * np.log(q) for q in p if q > 0))
    return logprobs, entropies


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values(dtype: torch.dtype, temperature: float) -> None:
    logits = (torch.randn(17, 33) * 4).to(dtype)
    ids = torch.randint(0, 33, (17,))
    logprobs, entropy = token_logprobs(logits, ids, temperature, with_entropy=True)
    assert logprobs.dtype == entropy.dtype == torch.float32
    expected = by_hand(logits.float().numpy(), ids.numpy(), temperature)
    np.testing.assert_allclose(logprobs.numpy(), expected[0], rtol=1e-5, atol=3e-6)
    np.testing.assert_allclose(entropy.numpy(), expected[1], rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(token_logprobs(logits, ids, temperature), logprobs)


def test_any_leading_shape() -> None:
    logits = torch.randn(2, 3, 5)
    ids = torch.randint(0, 5, (2, 3))
    flat = token_logprobs(logits.reshape(6, 5), ids.reshape(6))
    torch.testing.assert_close(token_logprobs(logits, ids).reshape(6), flat)
    assert token_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert token_logprobs(torch.zeros(5), torch.tensor(2)).item() == pytest.approx(-np.log(5))


def test_extreme_logits() -> None:
    inf = torch.inf
    logits = torch.tensor([[1e4, 0.0, 0.0], [-1e4, -1e4, -inf], [0.0, -inf, -inf]])
    logits.requires_grad_()
    logprobs, entropy = token_logprobs(logits, torch.tensor([1, 0, 0]), with_entropy=True)
    assert logprobs[0].item() == -1e4
    assert logprobs[1].item() == pytest.approx(-np.log(2), abs=1e-3)
    assert logprobs[2].item() == 0.0
    np.testing.assert_allclose(entropy.detach(), [0.0, np.log(2), 0.0], atol=1e-3)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.isfinite(logits.grad).all()
    assert token_logprobs(torch.tensor([[0.0, -inf]]), torch.tensor([1])).item() == -inf


def test_gradients() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(
        lambda x: token_logprobs(x, ids, 0.7, with_entropy=True), (logits,)
    )


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(3,\)"):
        token_logprobs(torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64))
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            token_logprobs(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), temperature)
