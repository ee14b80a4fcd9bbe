"""The policy loss on every backend against float64 loops: values, gradients, metrics, odd input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.backends import each_backend
from tests.ops.policy_loss import PER_TOKEN, Batch, by_hand, on
from visa_kernels import LOSS_TYPES, group_advantages, grpo_loss

on_every_backend = each_backend("grpo_loss")
CORRECTIONS = [
    ("none", "product"),
    ("token_truncate", "product"),
    ("token_mask", "product"),
    ("sequence_truncate", "product"),
    ("sequence_truncate", "geometric"),
    ("sequence_mask", "product"),
    ("sequence_mask", "geometric"),
]


def run(arguments: dict[str, Any], backend: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, gradient and metrics on the CPU in float64."""
    a = dict(arguments)
    logprobs = a.pop("logprobs").detach().requires_grad_()
    loss, metrics = grpo_loss(logprobs, backend=backend, **a)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.dtype == logprobs.dtype
    assert not any(value.requires_grad for value in metrics.values())
    wide = {name: value.double().cpu() for name, value in metrics.items()}
    return loss.detach().double().cpu(), gradient.double().cpu(), wide


def assert_close(
    got: tuple[Tensor, Tensor, dict[str, Tensor]], exact: dict[str, Any], rtol: float = 2e-6
) -> None:
    """Within rtol of the largest magnitude; NaN anywhere fails."""
    loss, gradient, metrics = by_hand(exact)
    assert got[0].item() == pytest.approx(loss, rel=rtol, abs=rtol)
    largest = np.abs(gradient).max(initial=1e-3)
    np.testing.assert_allclose(got[1].numpy(), gradient, rtol=rtol, atol=rtol * largest)
    assert set(got[2]) == set(metrics)
    for name, value in metrics.items():
        assert got[2][name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name


@on_every_backend
@pytest.mark.parametrize("correction,weight", CORRECTIONS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type_with_every_correction(
    backend: str, device: str, loss_type: str, correction: str, weight: str
) -> None:
    b = Batch().rounded(torch.float32)
    a = b.arguments(loss_type, sampler_correction=correction, sequence_weight=weight)
    assert_close(run(on(device, a, torch.float32), backend), a)


@on_every_backend
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_with_nothing_but_what_it_needs(backend: str, device: str, loss_type: str) -> None:
    b = Batch((70, 1, 513, 0, 2), spread=0.1).rounded(torch.float32)
    a = {name: b[name] for name in ("logprobs", "old_logprobs", "advantages", "cu_seqlens")}
    a |= {"loss_type": loss_type, "clip_low": 0.2, "clip_high": 0.3, "normalizer": 7.0}
    narrow = a | {"cu_seqlens": a["cu_seqlens"].int()}
    assert_close(run(on(device, narrow, torch.float32), backend), a)


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_half_precision_errs_no_more_than_torch(
    backend: str, device: str, dtype: torch.dtype, loss_type: str
) -> None:
    b = Batch().rounded(dtype)
    a = b.arguments(loss_type)
    loss, gradient, _ = by_hand(a)
    got = run(on(device, a, dtype), backend)
    torch_own = run(on("cpu", a, dtype), "reference")
    margin = 1e-6 * np.abs(gradient).max()
    error, torch_error = (np.abs(x[1].numpy() - gradient).max() for x in (got, torch_own))
    assert error <= 1.5 * torch_error + margin
    assert abs(got[0].item() - loss) <= 1.5 * abs(torch_own[0].item() - loss) + 1e-6


@on_every_backend
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "gspo"])
def test_rows_longer_than_any_tile(backend: str, device: str, loss_type: str) -> None:
    b = Batch((4200, 0, 600, 1), spread=0.05).rounded(torch.float32)
    a = b.arguments(loss_type, sampler_correction="sequence_mask", sequence_weight="geometric")
    assert_close(run(on(device, a, torch.float32), backend), a, rtol=1e-5)


@on_every_backend
def test_more_rows_than_one_level_of_sums_takes(backend: str, device: str) -> None:
    b = Batch(tuple(i % 3 for i in range(70))).rounded(torch.float32)
    a = b.arguments("grpo")
    assert_close(run(on(device, a, torch.float32), backend), a)


@on_every_backend
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("grouping", ["size", "ids"])
def test_rewards_in_give_what_their_advantages_give(
    backend: str, device: str, scale: str, grouping: str
) -> None:
    b = Batch((4, 2, 0, 1, 5, 3)).rounded(torch.float32)
    rewards = torch.tensor([1.0, 0.5, 2.5, 0.5, float("nan"), 3.0])
    counts = torch.tensor([True, True, True, True, False, True])
    by = {"group_size": 3} if grouping == "size" else {"group_ids": torch.tensor([2, 7] * 3)}
    advantages = group_advantages(rewards.double(), scale=scale, mask=counts, **by)
    a = b.arguments("grpo", advantages=advantages)
    into = {k: v for k, v in a.items() if k != "advantages"}
    into |= {"rewards": rewards, "reward_mask": counts, "advantage_scale": scale, **by}
    assert_close(run(on(device, into, torch.float32), backend), a)


@on_every_backend
def test_float64_rewards_keep_their_digits(backend: str, device: str) -> None:
    b = Batch((4, 2, 1, 5)).rounded(torch.float32)
    rewards = 1e6 + 1e-3 * torch.randn(4, dtype=torch.float64)
    a = b.arguments("dapo", advantages=group_advantages(rewards, group_size=4))
    into = on(device, {k: v for k, v in a.items() if k != "advantages"}, torch.float32)
    assert_close(run(into | {"rewards": rewards.to(device), "group_size": 4}, backend), a)


@on_every_backend
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_one_batch_equals_its_micro_batches(backend: str, device: str, loss_type: str) -> None:
    b = Batch()
    corrections = CORRECTIONS if (backend, device) != ("triton", "cpu") else CORRECTIONS[-2:-1]
    for correction, weight in corrections:
        a = b.arguments(loss_type, sampler_correction=correction, sequence_weight=weight)
        loss, gradient, _ = run(on(device, a, torch.float32), backend)
        parts = [run(on(device, m, torch.float32), backend) for m in micro_batches(a)]
        assert sum(part[0].item() for part in parts) == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, rtol=1e-6, atol=1e-8)


def micro_batches(a: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows 0, 1 to 2, 3 and 4 to 5 of a batch, with the whole batch's normalizer."""
    out, ends = [], a["cu_seqlens"]
    for start, stop in [(0, 1), (1, 3), (3, 4), (4, 6)]:
        tokens = slice(int(ends[start]), int(ends[stop]))
        of_tokens = {name: a[name][tokens] for name in PER_TOKEN}
        of_rows = {"advantages": a["advantages"][start:stop]}
        of_rows["cu_seqlens"] = ends[start : stop + 1] - ends[start]
        out.append(a | of_tokens | of_rows)
    return out


@on_every_backend
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,), (1, 1, 1), (0, 4, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_odd_shapes(backend: str, device: str, lengths: tuple[int, ...], masked: bool) -> None:
    b = Batch(lengths).rounded(torch.float32)
    b["mask"].fill_(not masked)
    for loss_type in ("dapo", "gspo"):
        a = b.arguments(loss_type, sampler_correction="sequence_truncate")
        got = run(on(device, a, torch.float32), backend)
        assert_close(got, a)
        if masked or not sum(lengths):
            assert got[0].item() == 0 and not got[1].any()
            assert all(value.item() == 0 for value in got[2].values())


@on_every_backend
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_what_stands_at_masked_tokens_has_no_effect(
    backend: str, device: str, loss_type: str
) -> None:
    b = Batch()
    b["mask"][6:15] = False
    a = on(device, b.arguments(loss_type, sampler_correction="token_mask"), torch.float32)
    expected = run(a, backend)
    for name in ("logprobs", "old_logprobs", "ref_logprobs", "sampler_logprobs", "entropy"):
        a[name][~a["mask"]] = torch.nan
    a["advantages"][3] = torch.nan
    got = run(a, backend)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert (got[1][~b["mask"]] == 0).all()


@on_every_backend
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "sampler_logprobs", "ref_logprobs"])
def test_nan_at_a_counted_token_is_not_hidden(
    backend: str, device: str, loss_type: str, name: str
) -> None:
    a = on(device, Batch().arguments(loss_type, mask=None), torch.float32)
    a[name][7] = torch.nan
    loss, gradient, _ = run(a, backend)
    assert loss.isnan()
    assert gradient[7].isnan() or name == "sampler_logprobs" or backend == "reference"


@on_every_backend
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("far", [19.0, 90.0, 1e4])
def test_extreme_ratios_stay_finite(
    backend: str, device: str, loss_type: str, far: float
) -> None:
    logprobs = torch.tensor([-far, 0.0, -far, 0.0, -1.0], dtype=torch.float64)
    old = torch.tensor([0.0, -far, 0.0, -far, -1.0], dtype=torch.float64)
    a = {
        "logprobs": logprobs,
        "old_logprobs": old,
        "sampler_logprobs": old + 1,
        "ref_logprobs": old,
        "advantages": torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64),
        "cu_seqlens": torch.tensor([0, 2, 4, 5]),
        "loss_type": loss_type,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "normalizer": 1.0,
        "kl_beta": 0.01,
        "sampler_correction": "token_truncate",
        "correction_low": 0.0,
        "correction_cap": 2.0,
    }
    got = run(on(device, a, torch.float32), backend)
    assert_close(got, a, rtol=1e-5)
    assert all(torch.isfinite(value) for value in got[2].values())


@on_every_backend
def test_strided_inputs(backend: str, device: str) -> None:
    a = Batch().rounded(torch.float32).arguments("grpo")
    strided = {
        name: torch.stack([x, x], 1)[:, 0] if isinstance(x, Tensor) and x.ndim == 1 else x
        for name, x in on(device, a, torch.float32).items()
    }
    assert not strided["logprobs"].is_contiguous()
    assert_close(run(strided, backend), a)


@on_every_backend
def test_the_upstream_gradient_scales_and_half_goes_with_float(backend: str, device: str) -> None:
    a = on(device, Batch().arguments("dapo"), torch.float32)
    a["old_logprobs"] = a["old_logprobs"].bfloat16()
    _, once, _ = run(a, backend)
    logprobs = a.pop("logprobs").requires_grad_()
    loss, _ = grpo_loss(logprobs, backend=backend, **a)
    (loss * -3).backward()
    torch.testing.assert_close(logprobs.grad.cpu().double(), -3 * once)


@on_every_backend
def test_own_normalizer(backend: str, device: str) -> None:
    for loss_type, masked in itertools.product(("gspo", "cispo"), (True, False)):
        b = Batch().rounded(torch.float32)
        if not masked:
            b["mask"].fill_(True)
        a = b.arguments(loss_type)
        own = a | {"normalizer": None, "mask": b["mask"] if masked else None}
        assert_close(run(on(device, own, torch.float32), backend), a)
