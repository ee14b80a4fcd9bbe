"""Completion logits of a causal LM over packed groups: every prompt once, no padding.

`enable_shared_prefix(model)` once, then `completion_logits`, which has the arguments and results of
`visa_core.training.forward.completion_logits`. Transformers hands unknown keywords of a model's
call down to its attention function, and that is how the layout gets there; calls without one, such
as generate(), go to transformers' own sdpa attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from visa_kernels import SharedPrefixLayout, shared_prefix_attention, shared_prefix_layout

NAME = "visa_shared_prefix"
"""What `attn_implementation` is called."""

_packed: ContextVar[bool] = ContextVar("packed", default=False)


def enable_shared_prefix(model: PreTrainedModel) -> None:
    """Make the model's attention take packed groups; other calls go on as with sdpa."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)
    model.set_attn_implementation(NAME)


def completion_logits(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the completion tokens, packed: (logits [N, V], tokens [N]).

    B completions of P prompts, B a multiple of P, the completions of one prompt adjacent; prompts
    are not empty. One row of all prompts and completions goes through the model, each prompt once,
    and only the N rows that predict a completion token reach the head.

    Raises ValueError for a model without `enable_shared_prefix` and for rows that do not fit.
    """
    if model.config._attn_implementation != NAME:
        raise ValueError("call enable_shared_prefix(model) first")
    if not prompts or len(completions) % len(prompts) or not all(prompts):
        raise ValueError(
            f"{len(completions)} completions and {len(prompts)} prompts: the first must be a "
            "multiple of the second, and no prompt empty"
        )
    group = len(completions) // len(prompts)
    layout = shared_prefix_layout(
        [len(row) for row in prompts], [len(row) for row in completions], [group] * len(prompts)
    )
    flat = [
        token
        for index, prompt in enumerate(prompts)
        for row in (prompt, *completions[index * group : (index + 1) * group])
        for token in row
    ]
    ids, layout = torch.tensor(flat, device=model.device), layout.to(model.device)
    output = packed_forward(model, ids, layout, backend=backend, logits_to_keep=layout.predictors)
    return output.logits[0], ids[layout.completion_mask]


def packed_forward(
    module: nn.Module,
    ids: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    backend: str | None = None,
    **arguments: Any,
) -> Any:
    """Output of a model with `enable_shared_prefix`, or of its part below the head, for packed ids
    [N]; `arguments` go to its call. States and logits have a leading dimension of 1.
    """
    token = _packed.set(True)
    try:
        return module(
            input_ids=ids[None],
            position_ids=layout.position_ids[None],
            use_cache=False,
            shared_prefix=layout,
            shared_prefix_backend=backend,
            **arguments,
        )
    finally:
        _packed.reset(token)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prefix: SharedPrefixLayout | None = None,
    shared_prefix_backend: str | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of transformers: query [1, H, N, D] -> out [1, N, H, D].

    Raises ValueError for what packed groups cannot have: dropout, a sliding window, other rows.
    """
    if shared_prefix is None:
        return AttentionInterface()["sdpa"](
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **kwargs,
        )
    if dropout or sliding_window is not None or len(query) != 1:
        raise ValueError(
            "attention over packed groups takes one row and has neither dropout nor a sliding "
            f"window; got {len(query)} rows, dropout {dropout}, window {sliding_window}"
        )
    out = shared_prefix_attention(
        *(x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value)),
        shared_prefix.cu_seqlens,
        shared_prefix.cu_groups,
        scale=scaling,
        backend=shared_prefix_backend,
    )
    return out[None], None


def attention_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Mask function of transformers: none for packed groups, otherwise that of sdpa."""
    return None if _packed.get() else ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
