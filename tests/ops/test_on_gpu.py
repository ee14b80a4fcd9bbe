"""The ops on a CUDA device give what they give in float64 on the CPU; none reads back mid-way."""

from __future__ import annotations

import pytest
import torch

from visa_kernels import LOSS_TYPES, group_advantages, grpo_loss, loss_normalizer, token_logprobs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(scale: str) -> None:
    rewards, groups = torch.randn(64), torch.randint(0, 9, (64,))
    got = group_advantages(rewards.cuda(), groups.cuda(), scale)
    torch.testing.assert_close(got.cpu(), group_advantages(rewards, groups, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_logprobs(dtype: torch.dtype) -> None:
    logits = (torch.randn(33, 4099) * 5).to(dtype)
    ids = torch.randint(0, 4099, (33,))
    got = token_logprobs(logits.cuda(), ids.cuda(), 0.7, with_entropy=True)
    expected = token_logprobs(logits.double(), ids, 0.7, with_entropy=True)
    for have, want in zip(got, expected, strict=True):
        torch.testing.assert_close(have.cpu().double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpo_loss_without_a_sync(loss_type: str) -> None:
    lengths = torch.tensor([5, 0, 1, 90])
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    old = -torch.rand(int(cu[-1]))
    logp, adv = old + 0.3 * torch.randn_like(old), torch.randn(4)
    normalizer = loss_normalizer(loss_type, lengths, max_length=100)
    wanted = logp.double().requires_grad_()
    expected, metrics = grpo_loss(
        wanted, old, adv, cu, loss_type=loss_type, normalizer=normalizer
    )
    expected.backward()
    on_gpu = [x.cuda() for x in (old, adv, cu, normalizer)]
    got = logp.cuda().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, gpu_metrics = grpo_loss(
            got, *on_gpu[:3], loss_type=loss_type, normalizer=on_gpu[3]
        )
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.grad.cpu().double(), wanted.grad, rtol=1e-4, atol=1e-6)
    for name, value in metrics.items():
        torch.testing.assert_close(gpu_metrics[name].cpu().double(), value, rtol=1e-4, atol=1e-5)
