"""Decoding through the module itself with an attention of its own: prompts stand once a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from visa_core.rollout.decoding.cache import GroupCache
from visa_core.rollout.decoding.decoder import Unsupported

NAME = "visa_decode"
"""What `attn_implementation` is called while rows are sampled."""
ROPES = ("default", "linear", "llama3", "yarn")
"""Rotations that depend on a token's own position alone, not on the longest in the batch."""


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    group_cache: GroupCache | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of transformers: query [1, H, N, D] over packed prompts, [S, H, 1, D]
    later. Raises Unsupported for what it does not compute.
    """
    if group_cache is None or attention_mask is not None or dropout:
        raise Unsupported("the attention is called with a mask or without the engine's cache")
    odd = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if odd:
        raise Unsupported(f"the attention has {', '.join(odd)}")
    if sliding_window is not None and group_cache.longest + group_cache.capacity > sliding_window:
        raise Unsupported(f"rows are longer than the sliding window of {sliding_window} tokens")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return group_cache.attend(module.layer_idx, query, key, value, scaling), None


def why_not(model: nn.Module) -> str | None:
    """None where a Hugging Face model looks fit for this decoder, otherwise what it has."""
    config = getattr(model, "config", None)
    if config is None or not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be exchanged"
    if getattr(config, "is_encoder_decoder", False):
        return "it has an encoder"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPES:
        return f"its positions are rotated by {kind!r}, which looks at the whole batch"
    return None


class SharedDecoder:
    """Decoder over a Hugging Face causal LM without padding: `GroupCache` holds keys and values.

    capacity: most tokens of a completion. Raises Unsupported from `prefill` for models that it
    cannot decode; nothing is changed then.
    """

    def __init__(self, model: nn.Module, capacity: int) -> None:
        self.model = model
        self.capacity = capacity

    def prefill(self, prompts: Sequence[Sequence[int]], completions: int) -> torch.Tensor:
        """See Decoder."""
        device = self.model.device
        self.cache = GroupCache(prompts, completions, self.capacity, device)
        flat = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(device)
        last_P = self.cache.cu_seqlens[1:] - 1
        logits_PV = self._forward(flat[None], positions[None], last_P)[0]
        layers = getattr(self.model.config, "num_hidden_layers", None)
        if len(self.cache.prompt) != layers:
            raise Unsupported(f"{len(self.cache.prompt)} of its {layers} layers attend")
        self.cache.written = 0
        return logits_PV.repeat_interleave(completions, 0)

    def worth_dropping(self, ended_S: torch.Tensor) -> bool:
        """See Decoder."""
        return bool(ended_S.any())

    def keep(self, alive_S: torch.Tensor) -> torch.Tensor:
        """See Decoder."""
        return self.cache.keep(alive_S).to(self.model.device)

    def step(self, token_S: torch.Tensor) -> torch.Tensor:
        """See Decoder."""
        logits = self._forward(token_S[:, None], self.cache.positions()[:, None], 1)[:, 0]
        self.cache.advance()
        return logits

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor | int
    ) -> torch.Tensor:
        return self.model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=kept,
            group_cache=self.cache,
        ).logits


@contextmanager
def decode_attention(model: nn.Module) -> Iterator[None]:
    """Inside, the model's layers call `attention`; afterwards what they called before."""
    AttentionInterface.register(NAME, attention)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
