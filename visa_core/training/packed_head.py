"""Causal LMs in two parts, below the head and the head, where packed groups can go through both."""

from __future__ import annotations

import logging

import torch
from torch import nn

from visa_core.training.packed_attention import enable_shared_prefix, packed_forward
from visa_kernels import SharedPrefixLayout, linear_logprobs, shared_prefix_layout

log = logging.getLogger("visa_core.training")


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers module, without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def softcap(model: nn.Module) -> float | None:
    """Bound of the logits, as Gemma's have."""
    return getattr(causal_lm(model).config, "final_logit_softcapping", None)


def prepare_packed(model: nn.Module) -> bool:
    """Whether the model's groups can be packed; its attention then takes them (see
    `enable_shared_prefix`). Those that cannot are logged with the reason and go through padded
    rows.
    """
    reason = why_not_packed(model)
    if reason is None:
        enable_shared_prefix(causal_lm(model))  # type: ignore[arg-type]
    else:
        log.warning("training on padded rows instead of packed groups: %s", reason)
    return reason is None


@torch.no_grad()
def why_not_packed(model: nn.Module) -> str | None:
    """None where logits are the head's product with the last states (and a softcap), which two
    tokens tell, and every token sees all before it.
    """
    lm = causal_lm(model)
    config = lm.config
    if getattr(config, "sliding_window", None) is not None:
        return "its attention has a sliding window"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention scores are capped"
    head, body = lm.get_output_embeddings(), lm.base_model
    if body is lm or not isinstance(head, nn.Linear):
        return "its head is no plain linear layer"
    ids = torch.tensor([[0, 1]], device=lm.device)
    states = body(input_ids=ids, use_cache=False).last_hidden_state
    found, cap = head(states), softcap(lm)
    found = found if cap is None else cap * torch.tanh(found / cap)
    logits = lm(input_ids=ids, use_cache=False).logits
    if not torch.allclose(found, logits, rtol=1e-3, atol=1e-3):
        return "its logits are more than its head's product"
    return None


def packed_states(
    model: nn.Module,
    prompts: list[list[int]],
    completions: list[list[int]],
    group_sizes: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """States [N, D] that predict the completion tokens, and these tokens [N].

    Prompt p's `group_sizes[p]` completions are adjacent and follow those of the prompts before.
    """
    lm = causal_lm(model)
    layout: SharedPrefixLayout = shared_prefix_layout(
        [len(ids) for ids in prompts], [len(ids) for ids in completions], group_sizes
    )
    flat: list[int] = []
    rows = iter(completions)
    for prompt, number in zip(prompts, group_sizes, strict=True):
        flat += prompt
        for _ in range(number):
            flat += next(rows)
    layout, ids = layout.to(lm.device), torch.tensor(flat, device=lm.device)
    states = packed_forward(lm.base_model, ids, layout).last_hidden_state[0]
    return states[layout.predictors], ids[layout.completion_mask]


def packed_logprobs(
    model: nn.Module,
    prompts: list[list[int]],
    completions: list[list[int]],
    group_sizes: list[int],
    temperature: float = 1.0,
) -> torch.Tensor:
    """Logprobs [N] of the completion tokens of a model with `prepare_packed`, differentiable."""
    states_ND, ids_N = packed_states(model, prompts, completions, group_sizes)
    head = causal_lm(model).get_output_embeddings()
    return linear_logprobs(states_ND, head.weight, ids_N, head.bias, temperature, softcap(model))
