"""Teacher-forced logits: a prompt read once for its group equals one full row per completion."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from tests.lms import KINDS, PAD, random_lm, random_rows
from visa_core.training.forward import autocast, completion_logits

PROMPTS = random_rows((5, 2, 9), seed=1)
RAGGED = random_rows((4, 1, 7, 3, 3, 2), seed=2)
SHORT = random_rows((1,) * 6, seed=3)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_lm(request.param, seed=5, std=0.3)


def row_by_row(model: PreTrainedModel, prompts: list, completions: list) -> torch.Tensor:
    """No padding, no cache, one sequence at a time: packed logits."""
    group = len(completions) // len(prompts)
    parts = []
    for i, row in enumerate(completions):
        prompt = prompts[i // group]
        logits = model(torch.tensor([prompt + row]), use_cache=False).logits[0]
        parts.append(logits[len(prompt) - 1 : -1])
    return torch.cat(parts)


def gradients(model: PreTrainedModel, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum in which every logit has a weight of its own."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (logits.log_softmax(-1) * weights).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def assert_same(model: PreTrainedModel, one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    mine, theirs = gradients(model, one), gradients(model, other)
    for name, grad in theirs.items():
        scale = grad.abs().max().item()
        assert scale > 0, f"{name} takes no part"
        assert (mine[name] - grad).abs().max().item() <= 1e-4 * scale, name


@pytest.mark.parametrize("completions", [RAGGED, SHORT], ids=["ragged", "one-token"])
def test_shared_prompts(model: PreTrainedModel, completions: list[list[int]]) -> None:
    logits, tokens = completion_logits(model, PROMPTS, completions, PAD)
    assert tokens.tolist() == [token for row in completions for token in row]
    repeated = [prompt for prompt in PROMPTS for _ in range(2)]
    single, same = completion_logits(model, repeated, completions, PAD)
    assert same.equal(tokens)
    assert_same(model, logits, single)


@pytest.mark.parametrize("shared", [True, False])
def test_padding_and_caching_change_nothing(model: PreTrainedModel, shared: bool) -> None:
    prompts = PROMPTS if shared else [prompt for prompt in PROMPTS for _ in range(2)]
    logits, _ = completion_logits(model, prompts, RAGGED, PAD)
    assert_same(model, logits, row_by_row(model, PROMPTS, RAGGED))


def test_float64_agrees_to_its_rounding() -> None:
    model = random_lm("qwen3", seed=5, std=0.3).double()
    logits, _ = completion_logits(model, PROMPTS, RAGGED, PAD)
    torch.testing.assert_close(logits, row_by_row(model, PROMPTS, RAGGED), atol=1e-6, rtol=1e-6)


def test_one_prompt_with_many_rows(model: PreTrainedModel) -> None:
    logits, _ = completion_logits(model, PROMPTS[2:], RAGGED, PAD)
    assert_same(model, logits, row_by_row(model, PROMPTS[2:], RAGGED))


def test_the_padding_id_may_be_a_token_of_the_texts(model: PreTrainedModel) -> None:
    """Where a tokenizer has no padding token the end token stands in for it."""
    stop = RAGGED[0][-1]
    padded, _ = completion_logits(model, PROMPTS, RAGGED, stop)
    torch.testing.assert_close(padded, completion_logits(model, PROMPTS, RAGGED, PAD)[0])


def test_rows_that_do_not_fit_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="5 completions are no multiple of 3 prompts"):
        completion_logits(model, PROMPTS, RAGGED[:5], PAD)
    with pytest.raises(ValueError, match=r"prompts \[0\] are empty"):
        completion_logits(model, [[]], RAGGED[:1], PAD)


def test_precision_decides_the_type_of_products() -> None:
    a = torch.randn(2, 2)
    with autocast(a.device, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(a.device, "fp32"):
        assert (a @ a).dtype == torch.float32
