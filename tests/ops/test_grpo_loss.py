"""Policy losses against float64 loops, gradients, micro-batches, clipping, odd shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from visa_kernels import LOSS_TYPES, grpo_loss, loss_normalizer
from visa_kernels.grpo_loss.op import counted_tokens

LOW, HIGH, MAX_LENGTH = 0.2, 0.3, 12
ROW_MEAN = ("grpo", "gspo")


class Batch:
    """Packed rows with lengths that include 0 and 1, ratios on both sides of the clip."""

    def __init__(self, lengths: tuple[int, ...] = (5, 1, 0, 9, 3, 7), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.lengths = torch.tensor(lengths, dtype=torch.int64)
        tokens = int(self.lengths.sum())
        self.cu = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
        self.old = -normal(tokens).abs() - 0.5
        self.logp = self.old + 0.4 * normal(tokens)
        self.ref = self.old + 0.3 * normal(tokens)
        self.sampler = self.old + 0.5 * normal(tokens)
        self.adv = normal(len(lengths))
        self.mask = torch.rand(tokens, generator=generator) > 0.25

    def normalizer(self, loss_type: str) -> torch.Tensor:
        counted = counted_tokens(self.cu, self.mask)
        return loss_normalizer(loss_type, counted, max_length=MAX_LENGTH)

    def arguments(self, loss_type: str) -> dict:
        """All options in use at once."""
        return {
            "loss_type": loss_type,
            "clip_low": LOW,
            "clip_high": HIGH,
            "normalizer": self.normalizer(loss_type),
            "ref_logprobs": self.ref,
            "kl_beta": 0.1,
            "sampler_logprobs": self.sampler,
            "sampler_correction": "token_truncate",
            "correction_cap": 1.5,
            "mask": self.mask,
        }


def by_hand(b: Batch, loss_type: str) -> float:
    """The same loss, one token at a time, from the formulas of the papers."""
    logp, old, ref, sampler = (x.numpy() for x in (b.logp, b.old, b.ref, b.sampler))
    total = 0.0
    for row, advantage in enumerate(b.adv.tolist()):
        tokens = [t for t in range(int(b.cu[row]), int(b.cu[row + 1])) if b.mask[t]]
        if not tokens:
            continue
        sequence = np.exp(np.mean([logp[t] - old[t] for t in tokens]))
        terms = []
        for t in tokens:
            ratio = sequence if loss_type == "gspo" else np.exp(logp[t] - old[t])
            clipped = min(max(ratio, 1 - LOW), 1 + HIGH)
            term = -min(ratio * advantage, clipped * advantage)
            if loss_type == "cispo":
                term = -clipped * advantage * logp[t]
            term *= min(np.exp(old[t] - sampler[t]), 1.5)
            terms.append(term + 0.1 * (np.exp(ref[t] - logp[t]) - 1 - (ref[t] - logp[t])))
        total += np.mean(terms) if loss_type in ROW_MEAN else np.sum(terms)
    divisor = {
        "grpo": len(b.lengths),
        "gspo": len(b.lengths),
        "dr_grpo": len(b.lengths) * MAX_LENGTH,
    }
    return total / divisor.get(loss_type, int(b.mask.sum()))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_values(loss_type: str) -> None:
    b = Batch()
    loss, _ = grpo_loss(b.logp, b.old, b.adv, b.cu, **b.arguments(loss_type))
    assert loss.item() == pytest.approx(by_hand(b, loss_type), rel=1e-12)
    single, _ = grpo_loss(b.logp.float(), b.old, b.adv, b.cu, **b.arguments(loss_type))
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(by_hand(b, loss_type), rel=1e-5)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "cispo"])
def test_gradients(loss_type: str) -> None:
    b = Batch()
    arguments = b.arguments(loss_type)
    logp = b.logp.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: grpo_loss(x, b.old, b.adv, b.cu, **arguments)[0], (logp,)
    )


def test_gradient_of_cispo_is_that_of_weighted_log_likelihood() -> None:
    """Its weight is held constant, so finite differences of the loss do not apply."""
    b = Batch()
    logp = b.logp.clone().requires_grad_()
    grpo_loss(
        logp, b.old, b.adv, b.cu, loss_type="cispo", clip_low=LOW, clip_high=HIGH, normalizer=1.0
    )[0].backward()
    weight = (b.logp - b.old).exp().clamp(1 - LOW, 1 + HIGH)
    torch.testing.assert_close(logp.grad, -weight * b.adv.repeat_interleave(b.lengths))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_one_batch_equals_its_micro_batches(loss_type: str) -> None:
    b = Batch()
    arguments = b.arguments(loss_type)
    whole = b.logp.clone().requires_grad_()
    loss, _ = grpo_loss(whole, b.old, b.adv, b.cu, **arguments)
    loss.backward()
    parts = b.logp.clone().requires_grad_()
    losses = []
    for start, stop in [(0, 1), (1, 3), (3, 4), (4, 6)]:
        tokens = slice(int(b.cu[start]), int(b.cu[stop]))
        own = arguments | {
            name: arguments[name][tokens] for name in ("ref_logprobs", "sampler_logprobs", "mask")
        }
        cu = b.cu[start : stop + 1] - b.cu[start]
        part, _ = grpo_loss(parts[tokens], b.old[tokens], b.adv[start:stop], cu, **own)
        part.backward()
        losses.append(part.item())
    assert sum(losses) == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_a_normalizer_the_batch_is_the_whole_step(loss_type: str) -> None:
    b = Batch()
    arguments = b.arguments(loss_type) | {"normalizer": None}
    if loss_type == "dr_grpo":
        with pytest.raises(ValueError, match="give max_length, or the normalizer itself"):
            grpo_loss(b.logp, b.old, b.adv, b.cu, **arguments)
        return
    loss, _ = grpo_loss(b.logp, b.old, b.adv, b.cu, **arguments)
    assert loss.item() == pytest.approx(by_hand(b, loss_type), rel=1e-6)


def two_updates(loss_type: str, clip: float, lr: float = 1.0) -> tuple[torch.Tensor, dict]:
    """Two steps of gradient descent on one batch of a softmax policy: probabilities and metrics.

    Two rows of one token each: token 0 with advantage +1, token 1 with advantage -1.
    """
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    ids, adv, cu = torch.tensor([0, 1]), torch.tensor([1.0, -1.0]), torch.tensor([0, 1, 2])
    old = logits.log_softmax(0)[ids].detach()
    history = []
    for _ in range(2):
        logp = logits.log_softmax(0)[ids]
        loss, metrics = grpo_loss(
            logp, old, adv, cu, loss_type=loss_type, clip_low=clip, clip_high=clip, normalizer=2.0
        )
        (grad,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= lr * grad
        history.append((logits.detach().softmax(0), metrics))
    return torch.stack([p for p, _ in history]), history[-1][1]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo", "gspo"])
def test_the_clip_stops_the_second_update(loss_type: str) -> None:
    clipped, metrics = two_updates(loss_type, clip=0.2)
    torch.testing.assert_close(clipped[1], clipped[0])
    assert metrics["clip_high_frac"].item() == metrics["clip_low_frac"].item() == 0.5
    free, metrics = two_updates(loss_type, clip=0.999)
    assert free[1, 0] > free[0, 0] + 0.05
    assert metrics["clip_high_frac"].item() == metrics["clip_low_frac"].item() == 0.0


def test_cispo_keeps_updating_past_the_clip() -> None:
    probabilities, metrics = two_updates("cispo", clip=0.2)
    assert probabilities[1, 0] > probabilities[0, 0] + 0.05
    assert metrics["clip_high_frac"].item() == 0.5


def test_low_and_high_clips_are_apart() -> None:
    old = torch.zeros(4)
    logp = torch.tensor([1.25, 1.35, 0.75, 0.65]).log().requires_grad_()
    adv, cu = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.arange(5)
    loss, metrics = grpo_loss(logp, old, adv, cu, clip_low=0.3, clip_high=0.3, normalizer=1.0)
    loss.backward()
    assert (logp.grad != 0).tolist() == [True, False, True, False]
    assert metrics["clip_low_frac"].item() == metrics["clip_high_frac"].item() == 0.25


def test_metrics_against_hand_computed() -> None:
    b = Batch()
    _, metrics = grpo_loss(b.logp, b.old, b.adv, b.cu, **b.arguments("dapo"))
    kept = b.mask.numpy()
    d = (b.logp - b.sampler).numpy()[kept]
    w = np.exp(d)
    correction = np.exp((b.old - b.sampler).numpy()[kept])
    to_ref = (b.ref - b.logp).numpy()[kept]
    ratio = np.exp((b.logp - b.old).numpy()[kept])
    advantage = b.adv.repeat_interleave(b.lengths).numpy()[kept]
    expected = {
        "clip_low_frac": ((ratio < 1 - LOW) & (advantage < 0)).mean(),
        "clip_high_frac": ((ratio > 1 + HIGH) & (advantage > 0)).mean(),
        "kl_k1": -d.mean(),
        "kl_k3": (w - 1 - d).mean(),
        "ess": w.sum() ** 2 / (w**2).sum() / len(w),
        "max_abs_dlogp": np.abs(d).max(),
        "ref_kl": (np.exp(to_ref) - 1 - to_ref).mean(),
        "correction_capped_frac": (correction > 1.5).mean(),
    }
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-12), name
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())


def test_kl_estimates_agree_with_the_exact_divergence() -> None:
    """Means of k1 and k3 over many samples, against the sum over the vocabulary."""
    sampler = (torch.randn(8, dtype=torch.float64)).log_softmax(0)
    policy = (sampler + 0.3 * torch.randn(8, dtype=torch.float64)).log_softmax(0)
    exact = (sampler.exp() * (sampler - policy)).sum().item()
    ids = torch.multinomial(sampler.exp(), 200_000, replacement=True)
    _, metrics = grpo_loss(
        policy[ids], sampler[ids], torch.zeros(1), torch.tensor([0, len(ids)]), normalizer=1.0
    )
    assert metrics["kl_k1"].item() == pytest.approx(exact, rel=0.1)
    assert metrics["kl_k3"].item() == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,), (1, 1, 1), (0, 4, 0)])
def test_odd_shapes(loss_type: str, lengths: tuple[int, ...]) -> None:
    b = Batch(lengths)
    b.mask[:] = True
    logp = b.logp.clone().requires_grad_()
    loss, metrics = grpo_loss(logp, b.old, b.adv, b.cu, **b.arguments(loss_type))
    loss.backward()
    expected = by_hand(b, loss_type) if sum(lengths) else 0.0
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.isfinite(logp.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())
    if not sum(lengths):
        assert all(value.item() == 0 for value in metrics.values())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_masked_tokens_have_no_effect_whatever_stands_there(loss_type: str) -> None:
    b = Batch()
    b.mask[int(b.cu[3]) : int(b.cu[4])] = False
    clean = b.logp.clone().requires_grad_()
    expected, clean_metrics = grpo_loss(clean, b.old, b.adv, b.cu, **b.arguments(loss_type))
    expected.backward()
    for x in (b.old, b.ref, b.sampler, b.logp):
        x[~b.mask] = torch.nan
    poisoned = b.logp.clone().requires_grad_()
    loss, metrics = grpo_loss(poisoned, b.old, b.adv, b.cu, **b.arguments(loss_type))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, clean_metrics)
    torch.testing.assert_close(poisoned.grad, clean.grad)
    assert (poisoned.grad[~b.mask] == 0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("far", [90.0, 1e4])
def test_extreme_ratios_stay_finite(loss_type: str, far: float) -> None:
    logp = torch.tensor([-far, 0.0, -far, 0.0, -1.0], requires_grad=True)
    old = torch.tensor([0.0, -far, 0.0, -far, -1.0])
    cu = torch.tensor([0, 2, 4, 5])
    adv = torch.tensor([1.0, -1.0, 0.5])
    loss, metrics = grpo_loss(
        logp,
        old,
        adv,
        cu,
        loss_type=loss_type,
        normalizer=1.0,
        sampler_logprobs=old,
        sampler_correction="token_truncate",
        ref_logprobs=old,
        kl_beta=0.01,
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logp.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert metrics["max_abs_dlogp"].item() == far


def test_at_ratio_one_all_token_types_have_the_policy_gradient() -> None:
    b = Batch((3, 2))
    for loss_type, normalizer in itertools.product(("dapo", "dr_grpo", "cispo"), (1.0, 4.0)):
        logp = b.old.clone().requires_grad_()
        loss, _ = grpo_loss(
            logp, b.old, b.adv, b.cu, loss_type=loss_type, normalizer=torch.tensor(normalizer)
        )
        loss.backward()
        expected = -b.adv.repeat_interleave(b.lengths) / normalizer
        torch.testing.assert_close(logp.grad, expected)


def test_normalizers() -> None:
    lengths = torch.tensor([3, 0, 5])
    values = {name: loss_normalizer(name, lengths, max_length=10).item() for name in LOSS_TYPES}
    assert values == {"grpo": 3, "gspo": 3, "dr_grpo": 30, "dapo": 8, "bnpo": 8, "cispo": 8}
    assert loss_normalizer("dapo", torch.zeros(0, dtype=torch.int64)).item() == 1
    mask = torch.tensor([True, False, True, False, False])
    assert counted_tokens(torch.tensor([0, 2, 2, 5]), mask).tolist() == [1, 0, 1]
    assert counted_tokens(torch.tensor([0, 2, 2, 5])).tolist() == [2, 0, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type must be one of grpo, bnpo, dapo, .*got 'ppo'"),
        ({"sampler_correction": "x"}, "sampler_correction must be one of none, token_truncate"),
        ({"sampler_correction": "token_truncate"}, "needs sampler_logprobs"),
        ({"kl_beta": 0.1}, "kl_beta 0.1 needs ref_logprobs"),
        ({"mask": torch.ones(4).bool()}, r"mask must have the shape .*\(3,\), got \(4,\)"),
        ({"old_logprobs": torch.zeros(2)}, "old_logprobs must have the shape of logprobs"),
        ({"advantages": torch.zeros(3)}, r"advantages must be \[2\], one per row"),
        ({"cu_seqlens": torch.tensor([0, 2, 4])}, "must rise from 0 to the number of tokens, 3"),
        ({"cu_seqlens": torch.tensor([1, 2, 3])}, "must rise from 0"),
        ({"cu_seqlens": torch.tensor([0.0, 2.0, 3.0])}, "must be integers, got torch.float32"),
        ({"logprobs": torch.zeros(1, 3)}, r"logprobs must be \[N\]"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    arguments = {
        "logprobs": torch.zeros(3),
        "old_logprobs": torch.zeros(3),
        "advantages": torch.zeros(2),
        "cu_seqlens": torch.tensor([0, 1, 3]),
    }
    with pytest.raises(ValueError, match=message):
        grpo_loss(**(arguments | change))
