"""Group advantages against float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visa_kernels import group_advantages

EPS = 1e-4


def by_hand(rewards: np.ndarray, groups: np.ndarray, scale: str) -> np.ndarray:
    """(r - mean) / (std + eps) row by row, in float64."""
    out = np.zeros(len(rewards))
    for row, group in enumerate(groups):
        own = rewards[groups == group]
        centred = rewards[row] - own.mean()
        if scale == "group":
            centred /= (own.std(ddof=1) if len(own) > 1 else 0.0) + EPS
        elif scale == "batch" and len(rewards) > 1:
            centred /= rewards.std(ddof=1) + EPS
        out[row] = centred
    return out


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_values_on_ragged_shuffled_groups(scale: str, offset: float) -> None:
    rng = np.random.default_rng(1)
    groups = rng.permutation(np.repeat([7, -3, 40, 2], [8, 1, 5, 2]))
    rewards = (rng.normal(size=len(groups)) + offset).astype(np.float32)
    got = group_advantages(torch.tensor(rewards), torch.tensor(groups), scale)
    assert got.dtype == torch.float32
    expected = by_hand(rewards.astype(np.float64), groups, scale)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_known_numbers() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 9.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    got = group_advantages(rewards, groups, eps=0.0)[:3]
    torch.testing.assert_close(got, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))


def test_equal_rewards_and_groups_of_one_give_exact_zeros() -> None:
    groups = torch.tensor([4] * 7 + [9])
    for dtype in (torch.float32, torch.float64):
        rewards = torch.tensor([0.1] * 7 + [3.0], dtype=dtype)
        assert group_advantages(rewards, groups).tolist() == [0.0] * 8
    assert group_advantages(torch.tensor([2.0]), torch.tensor([0]), "batch").tolist() == [0.0]


def test_empty_and_half_precision() -> None:
    assert group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    half = group_advantages(torch.tensor([0.0, 1.0]).bfloat16(), torch.tensor([0, 0]), "none")
    assert half.dtype == torch.float32
    assert half.tolist() == [-0.5, 0.5]


def test_no_gradient_flows_to_rewards() -> None:
    rewards = torch.tensor([0.0, 1.0], requires_grad=True)
    assert not group_advantages(rewards, torch.tensor([0, 0])).requires_grad


def test_non_finite_rewards_are_refused_with_their_rows() -> None:
    rewards = torch.zeros(20)
    rewards[3], rewards[17] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"2 of 20 are not, rows 3 \(nan\), 17 \(inf\)"):
        group_advantages(rewards, torch.zeros(20, dtype=torch.int64))
    with pytest.raises(ValueError, match="and 12 more"):
        group_advantages(torch.full((20,), torch.nan), torch.zeros(20, dtype=torch.int64))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="scale must be one of group, batch, none, got 'std'"):
        group_advantages(torch.zeros(2), torch.zeros(2), "std")
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        group_advantages(torch.zeros(2), torch.zeros(3))
