"""Our losses and heads against TRL's and Liger's own code: values, gradients and metrics.

The same random batch of ragged rows goes through each. Definitions differ in these points, which
`bench.peers` translates: peers pad rows; they call gspo "grpo" at sequence level; the cap of their
cispo is `epsilon_high` itself where ours is 1 + clip_high, and there is no lower cap, which
clip_low=1 gives here. Past a log-ratio of 20 ours is cut and theirs is not: rows here stay within.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.peers import liger, rows, trl, trl_packing
from visa_kernels import (
    LOSS_TYPES,
    bin_of_sequences,
    grpo_loss,
    linear_grpo_loss,
    linear_logprobs,
    loss_normalizer,
    token_logprobs,
)

LENGTHS = (5, 1, 9, 3, 12, 2)
LONGEST = 12
HIDDEN, VOCABULARY = 16, 61

needs_trl = pytest.mark.usefixtures("trl_here")
needs_liger = pytest.mark.usefixtures("liger_here")
each_loss_type = pytest.mark.parametrize("loss_type", LOSS_TYPES)


CLIP_METRICS = {
    "cispo": {"clip_high_frac": "cispo_clip_ratio"},
    "gspo": {},
}
"""Ours and TRL's names. gspo: TRL takes the mean over rows, ours over tokens."""

TOKEN_CLIP_METRICS = {
    "clip_low_frac": "clip_ratio/low_mean",
    "clip_high_frac": "clip_ratio/high_mean",
}


@pytest.fixture(scope="module")
def trl_here() -> None:
    """Skips where TRL is absent; imported here because that takes seconds."""
    reason = trl.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def liger_here() -> None:
    """Skips where Liger-Kernel is absent."""
    reason = liger.why_not()
    if reason is not None:
        pytest.skip(reason)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Ragged rows packed to N tokens, with what a head needs."""

    hidden: Tensor
    weight: Tensor
    ids: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor
    cu_seqlens: Tensor

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Fresh hidden and weight that collect gradients."""
        return self.hidden.clone().requires_grad_(), self.weight.clone().requires_grad_()

    def pad(self, x_N: Tensor) -> Tensor:
        padded = rows.pad(x_N, *rows.grid(self.cu_seqlens))
        assert padded is not None
        return padded

    def mask(self) -> Tensor:
        return rows.grid(self.cu_seqlens)[1].long()


@pytest.fixture
def batch() -> Batch:
    """Policies that differ by about 0.3 nats a token, so that the clip acts on both sides."""
    lengths = torch.tensor(LENGTHS)
    count = int(lengths.sum())
    hidden, weight = torch.randn(count, HIDDEN), torch.randn(VOCABULARY, HIDDEN) / 2
    ids = torch.randint(0, VOCABULARY, (count,))
    logprobs = plain_logprobs(hidden, weight, ids)
    return Batch(
        hidden=hidden,
        weight=weight,
        ids=ids,
        old=logprobs + 0.3 * torch.randn(count),
        reference=logprobs + 0.3 * torch.randn(count),
        advantages=torch.randn(len(lengths)),
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
    )


def plain_logprobs(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)


def ours(
    batch: Batch, loss_type: str, **options: Any
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
    """Our loss on plain logits, its metrics, and the gradients of hidden and weight."""
    hidden, weight = batch.leaves()
    logprobs = plain_logprobs(hidden, weight, batch.ids)
    loss, metrics = grpo_loss(logprobs, **our_arguments(batch, loss_type), **options)
    return loss.detach(), metrics, torch.autograd.grad(loss, (hidden, weight))


def fused(batch: Batch, loss_type: str, **options: Any) -> tuple[Tensor, ...]:
    """Our loss from hidden states in one pass, and its gradients."""
    hidden, weight = batch.leaves()
    arguments = our_arguments(batch, loss_type)
    loss, _ = linear_grpo_loss(hidden, weight, batch.ids, **arguments, **options)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def our_arguments(batch: Batch, loss_type: str) -> dict[str, Any]:
    return {
        "old_logprobs": batch.old,
        "advantages": batch.advantages,
        "cu_seqlens": batch.cu_seqlens,
        "loss_type": loss_type,
        "clip_low": 1.0 if loss_type == "cispo" else 0.2,
        "clip_high": 0.28,
        "normalizer": loss_normalizer(loss_type, torch.tensor(LENGTHS), max_length=LONGEST),
    }


def from_trl(
    batch: Batch, loss_type: str, **options: Any
) -> tuple[Tensor, dict[str, float], tuple[Tensor, ...]]:
    hidden, weight = batch.leaves()
    loss, metrics = trl.linear_loss(
        hidden,
        weight,
        batch.ids,
        batch.pad(batch.old),
        batch.advantages,
        batch.mask(),
        loss_type=loss_type,
        clip_high=0.28,
        max_length=LONGEST,
        **options,
    )
    return loss.detach(), metrics, torch.autograd.grad(loss, (hidden, weight))


def from_liger(batch: Batch, loss_type: str, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    hidden, weight = batch.leaves()
    loss = liger.linear_loss(
        batch.pad(hidden),
        weight,
        batch.pad(batch.ids),
        batch.pad(batch.old),
        batch.advantages,
        batch.mask(),
        loss_type=loss_type,
        clip_high=0.28,
        max_length=LONGEST,
        **options,
    )
    return loss.detach(), torch.autograd.grad(loss, (hidden, weight))


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for have, want in zip(got, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=2e-5, atol=2e-6)


@needs_trl
@each_loss_type
def test_loss_gradients_and_clip_metrics_are_trls(batch: Batch, loss_type: str) -> None:
    loss, metrics, gradients = ours(batch, loss_type)
    peer_loss, peer_metrics, peer_gradients = from_trl(batch, loss_type)
    assert_same((loss, *gradients), (peer_loss, *peer_gradients))
    for name, theirs in CLIP_METRICS.get(loss_type, TOKEN_CLIP_METRICS).items():
        assert float(metrics[name]) == pytest.approx(peer_metrics[theirs], abs=1e-6), name
        assert peer_metrics[theirs] > 0


@needs_liger
@each_loss_type
def test_loss_and_gradients_are_ligers(batch: Batch, loss_type: str) -> None:
    loss, _, gradients = ours(batch, loss_type)
    peer_loss, peer_gradients = from_liger(batch, loss_type, chunk_rows=2)
    assert_same((loss, *gradients), (peer_loss, *peer_gradients))


@needs_trl
@needs_liger
@each_loss_type
def test_the_fused_loss_is_theirs(batch: Batch, loss_type: str) -> None:
    """Hidden states in, on both sides; rows without advantage are left out of ours alone."""
    batch.advantages[1] = 0.0
    got = fused(batch, loss_type)
    trl_loss, _, trl_gradients = from_trl(batch, loss_type)
    liger_loss, liger_gradients = from_liger(batch, loss_type)
    assert_same(got, (trl_loss, *trl_gradients))
    assert_same(got, (liger_loss, *liger_gradients))


@needs_trl
@needs_liger
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "gspo"])
def test_the_dual_clip_is_their_delta(batch: Batch, loss_type: str) -> None:
    """They cut the ratio for either sign of the advantage; past 1 + clip_high that is the same."""
    loss, _, gradients = ours(batch, loss_type, clip_dual=1.3)
    unclipped, *_ = ours(batch, loss_type)
    trl_loss, _, trl_gradients = from_trl(batch, loss_type, delta=1.3)
    liger_loss, liger_gradients = from_liger(batch, loss_type, delta=1.3)
    assert_same((loss, *gradients), (trl_loss, *trl_gradients))
    assert_same((loss, *gradients), (liger_loss, *liger_gradients))
    assert loss_type == "gspo" or loss != unclipped


@needs_trl
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_linear_logprobs_are_those_of_trls_head(batch: Batch, softcap: float | None) -> None:
    """With bias and temperature; gradients through log-probabilities and entropies."""
    bias, upstream = torch.randn(VOCABULARY), torch.linspace(-1, 1, len(batch.ids))
    results = []
    for head in (linear_logprobs, trl.head):
        leaves = [*batch.leaves(), bias.clone().requires_grad_()]
        options = {"bias": leaves[2], "temperature": 0.7, "softcap": softcap}
        if head is linear_logprobs:
            options["with_entropy"] = True
        logprobs, entropy = head(leaves[0], leaves[1], batch.ids, **options)
        total = (logprobs * upstream).sum() + 0.3 * entropy.sum()
        results.append((logprobs, entropy, *torch.autograd.grad(total, leaves)))
    assert_same(*results)


@needs_trl
@needs_liger
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "gspo"])
def test_kl_to_a_reference_is_theirs(batch: Batch, loss_type: str) -> None:
    """k3 of the policy's own tokens, added to each token's term before the mean."""
    loss, metrics, gradients = ours(batch, loss_type, ref_logprobs=batch.reference, kl_beta=0.7)
    options = {"ref_logprobs": batch.pad(batch.reference), "kl_beta": 0.7}
    trl_loss, trl_metrics, trl_gradients = from_trl(batch, loss_type, **options)
    liger_loss, liger_gradients = from_liger(batch, loss_type, **options)
    assert_same((loss, *gradients), (trl_loss, *trl_gradients))
    assert_same((loss, *gradients), (liger_loss, *liger_gradients))
    assert float(metrics["ref_kl"]) == pytest.approx(trl_metrics["kl"], rel=1e-5)


@needs_trl
@needs_liger
def test_truncated_sampler_weights_are_theirs(batch: Batch) -> None:
    """They take the weights ready-made; TRL makes them as min(exp(old - sampler), cap)."""
    sampler = batch.old + 0.5 * torch.randn_like(batch.old)
    weights = (batch.old - sampler).exp().clamp(max=1.5)
    assert (weights == 1.5).any()
    loss, _, gradients = ours(
        batch,
        "dapo",
        sampler_logprobs=sampler,
        sampler_correction="token_truncate",
        correction_cap=1.5,
    )
    padded = batch.pad(weights)
    trl_loss, _, trl_gradients = from_trl(batch, "dapo", importance_ratio=padded)
    liger_loss, liger_gradients = from_liger(batch, "dapo", importance_ratio=padded)
    assert_same((loss, *gradients), (trl_loss, *trl_gradients))
    assert_same((loss, *gradients), (liger_loss, *liger_gradients))


@needs_trl
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_entropy_are_trls(batch: Batch, temperature: float) -> None:
    logits = (3 * batch.hidden @ batch.weight.t()).requires_grad_()
    got = token_logprobs(logits, batch.ids, temperature, with_entropy=True)
    (gradient,) = torch.autograd.grad(got[0].sum() + 0.3 * got[1].sum(), logits)
    expected = trl.token_logprobs_and_entropy(logits[None], batch.ids[None], temperature)
    (peer,) = torch.autograd.grad(expected[0].sum() + 0.3 * expected[1].sum(), logits)
    assert_same((*got, gradient), (*(x[0] for x in expected), peer))


@needs_trl
def test_trls_packing_is_valid_and_no_fuller_than_ours() -> None:
    """Best fit against first fit decreasing: other bins, as few of them; wrong ones are told."""
    lengths = torch.randint(1, 200, (300,)).numpy()
    inputs = {"lengths": lengths, "budget": 512}
    table = trl_packing.pack(trl_packing.as_table(inputs))
    assert trl_packing.problem(table, inputs) is None
    least = -(-int(lengths.sum()) // 512)
    ours = 1 + int(bin_of_sequences(lengths, 512).max())
    assert least <= min(ours, table.num_rows)
    assert "more than the budget" in str(trl_packing.problem(table, {**inputs, "budget": 500}))
    assert "is missing" in str(trl_packing.problem(table[:-1], inputs))
    longer = {**inputs, "lengths": lengths + 1, "budget": 600}
    assert "has lost tokens" in str(trl_packing.problem(table, longer))
