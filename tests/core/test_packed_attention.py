"""Packed groups in Hugging Face models: the logits and gradients of a padded batch."""

from __future__ import annotations

import pytest
import torch

from tests.lms import KINDS, PAD, random_lm, random_rows
from visa_core.training.forward import completion_logits as padded_logits
from visa_core.training.packed_attention import completion_logits, enable_shared_prefix

PROMPTS = random_rows((7, 2), seed=1)
COMPLETIONS = random_rows((4, 1, 9, 3, 6, 2), seed=2)


def gradients(model: torch.nn.Module, logits: torch.Tensor, tokens: torch.Tensor) -> dict:
    """Of a loss that weighs tokens unequally."""
    model.zero_grad()
    weights = torch.linspace(-1, 2, len(tokens), dtype=logits.dtype)
    chosen = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    (chosen * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_padded_batch(kind: str, dtype: torch.dtype) -> None:
    """Each prompt once, against each completion with its own copy, padded.

    Transformers computes norms in float32 whatever the model's type, so float64 gains one digit.
    """
    model = random_lm(kind).to(dtype)
    copies = [prompt for prompt in PROMPTS for _ in range(3)]
    wanted, tokens = padded_logits(model, copies, COMPLETIONS, PAD)
    expected = gradients(model, wanted, tokens)
    enable_shared_prefix(model)
    logits, packed_tokens = completion_logits(model, PROMPTS, COMPLETIONS)
    assert torch.equal(packed_tokens, tokens)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    for name, grad in gradients(model, logits, tokens).items():
        error = (grad - expected[name]).abs().max() / expected[name].abs().max()
        assert error < (5e-6 if dtype == torch.float32 else 5e-7), (name, error)


def test_checkpointed_layers_see_the_layout_again() -> None:
    model = random_lm("qwen3").train()
    enable_shared_prefix(model)
    expected = gradients(model, *completion_logits(model, PROMPTS, COMPLETIONS))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, *completion_logits(model, PROMPTS, COMPLETIONS))
    for name, grad in again.items():
        torch.testing.assert_close(grad, expected[name])


def test_other_calls_go_on_as_before() -> None:
    model = random_lm("llama")
    ids = torch.tensor([PROMPTS[0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits
        enable_shared_prefix(model)
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, wanted)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= 10


def test_what_packed_groups_cannot_have() -> None:
    model = random_lm("llama")
    with pytest.raises(ValueError, match="enable_shared_prefix"):
        completion_logits(model, PROMPTS, COMPLETIONS)
    enable_shared_prefix(model)
    with pytest.raises(ValueError, match="no prompt empty"):
        completion_logits(model, [[]], [[3]])
    with pytest.raises(ValueError, match="5 completions and 2 prompts"):
        completion_logits(model, PROMPTS, COMPLETIONS[:5])
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(ValueError, match="dropout 0.5"):
        completion_logits(model.train(), PROMPTS, COMPLETIONS)
