"""K adapters at once against one at a time, against peft, and against a copy of the base."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from tests import lms
from visa_core.config.search import UpdateConfig
from visa_core.search.adapters import CandidateAdapters, weights_digest
from visa_core.search.updates import Row, backward, clip_each, mock_update, part_logprobs, passes
from visa_core.training.packed_attention import enable_shared_prefix

CONFIG = UpdateConfig(steps=3, batch_size=3, lr=0.02, rank=4, token_budget=40)
K = 4


def base(kind: str = "qwen3", packed: bool = True) -> PreTrainedModel:
    model = lms.random_lm(kind)
    if packed:
        enable_shared_prefix(model)
    return model


def rows_of(k: int, even: bool = False) -> list[Row]:
    """Five rows; ragged rows differ in length between candidates."""
    lengths = (4, 6, 3, 5, 7) if even else tuple(3 + (2 * i + 3 * k) % 7 for i in range(5))
    prompts = lms.random_rows((3, 5, 2, 4, 6), seed=1)
    completions = lms.random_rows(lengths, seed=10 + k)
    return [Row(p, c) for p, c in zip(prompts, completions, strict=True)]


def trained(
    model: PreTrainedModel, rows: list[list[Row]], config: UpdateConfig = CONFIG, seed: int = 5
) -> CandidateAdapters:
    adapters = CandidateAdapters(model, len(rows), rank=config.rank, alpha=config.alpha, seed=2)
    mock_update(model, adapters, rows, config, pad_id=lms.PAD, seed=seed)
    return adapters


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_together_equals_one_by_one(packed: bool, even: bool) -> None:
    model = base(packed=packed)
    before = weights_digest(model)
    rows = [rows_of(k, even) for k in range(K)]
    together = trained(model, rows)
    assert weights_digest(model) == before
    for k in range(K):
        alone = trained(model, [rows[k]])
        for a, b in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a[k], b[0], rtol=2e-4, atol=2e-5)
    first, second = together.B[0][0], together.B[0][1]
    assert (first - second).norm() > 0.1 * first.norm() > 0


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_equal_pefts(packed: bool) -> None:
    """The same adapter inside peft, on the same rows one by one, in float64."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj", "down_proj"]
    model = base(packed=False)
    wrapped = get_peft_model(
        copy.deepcopy(model).double(), LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    )
    if packed:
        enable_shared_prefix(model)
    adapters = CandidateAdapters(model, 2, rank=4, alpha=8, targets=targets, seed=3)
    with torch.no_grad():
        for b in adapters.B:
            b.normal_(std=0.1)
    rows = [rows_of(0), rows_of(1)]
    losses = backward(model, adapters, rows, CONFIG, lms.PAD)
    for k in range(2):
        peft = dict(wrapped.named_parameters())
        for name, a, b in zip(adapters.linears, adapters.A, adapters.B, strict=True):
            for letter, ours in (("A", a), ("B", b)):
                weight = peft[f"base_model.model.{name}.lora_{letter}.default.weight"]
                weight.data.copy_(ours[k])
                weight.grad = None
        total = sum(len(r.completion) for r in rows[k])
        loss = torch.zeros((), dtype=torch.float64)
        for row in rows[k]:
            ids = torch.tensor([row.prompt + row.completion])
            logp = wrapped(input_ids=ids).logits[0, :-1].log_softmax(-1)
            picked = logp.gather(-1, ids[0, 1:, None])[len(row.prompt) - 1 :]
            loss = loss - picked.sum() / total
        loss.backward()
        assert float(losses[k]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, a, b in zip(adapters.linears, adapters.A, adapters.B, strict=True):
            for letter, ours in (("A", a), ("B", b)):
                weight = peft[f"base_model.model.{name}.lora_{letter}.default.weight"]
                torch.testing.assert_close(ours.grad[k].double(), weight.grad, rtol=2e-3, atol=2e-5)


def test_micro_batches_do_not_change_the_gradient() -> None:
    model = base()
    rows = [rows_of(k) for k in range(2)]
    grads = []
    for budget in (10**6, 1):
        adapters = CandidateAdapters(model, 2, rank=4, seed=1)
        config = UpdateConfig(token_budget=budget)
        assert len(list(passes(rows, budget))) == (1 if budget > 1 else 5)
        backward(model, adapters, rows, config, lms.PAD)
        grads.append([b.grad.clone() for b in adapters.B])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_adapter_yet_is_the_base() -> None:
    """B starts at zero, so that the first pass has the base's log-probabilities."""
    model = base()
    adapters = CandidateAdapters(model, 2, rank=4)
    part = [rows_of(0), rows_of(1)]
    ours = part_logprobs(model, adapters, part, lms.PAD)
    plain = lms.random_lm("qwen3")
    expected = []
    for row in part[0] + part[1]:
        ids = torch.tensor([row.prompt + row.completion])
        logp = plain(input_ids=ids).logits[0, :-1].log_softmax(-1)
        expected.append(logp.gather(-1, ids[0, 1:, None])[len(row.prompt) - 1 :, 0])
    torch.testing.assert_close(ours, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_clipping_is_a_candidates_own() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, 3, 4)), torch.nn.Parameter(torch.zeros(2, 4, 3))]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
        weight.grad[1] = 0.01
    clip_each(weights, 1.0)
    norms = sum(w.grad.flatten(1).square().sum(1) for w in weights).sqrt()
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.01 * 24**0.5]))


def test_a_diverged_candidate_leaves_the_others_alone() -> None:
    model = base()
    rows = [rows_of(k) for k in range(2)]
    good = trained(model, rows)
    adapters = CandidateAdapters(model, 2, rank=4, seed=2)
    with torch.no_grad():
        adapters.A[0][0] = float("nan")
    losses = mock_update(model, adapters, rows, CONFIG, pad_id=lms.PAD, seed=5)
    assert losses[0] != losses[0] and losses[1] == losses[1]
    for a, b in zip(adapters.B, good.B, strict=True):
        torch.testing.assert_close(a[1], b[1], rtol=1e-4, atol=1e-5)


def test_other_architectures_train_padded() -> None:
    model = lms.random_lm("gemma2")
    together = trained(model, [rows_of(0), rows_of(1)])
    alone = trained(model, [rows_of(1)])
    torch.testing.assert_close(together.B[0][1], alone.B[0][0], rtol=1e-3, atol=1e-5)


def test_a_model_without_such_layers_is_told() -> None:
    with pytest.raises(ValueError, match="no linear layer named c_attn: name its layers with"):
        CandidateAdapters(base(), 2, targets=("c_attn",))
    adapters = CandidateAdapters(base(), 2)
    with (
        pytest.raises(ValueError, match="3 shares for 2 candidates"),
        adapters.attached(base(), [1, 1, 1]),
    ):
        pass


def test_the_digest_sees_one_changed_number() -> None:
    model = base()
    before = weights_digest(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 2] += 1e-3
    assert weights_digest(model) != before
    assert weights_digest(base()) == before
