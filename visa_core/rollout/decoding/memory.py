"""How many groups fit into memory at once."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

SHARE = 0.5
"""Of the memory that is free, what keys and values may take."""


def groups_at_once(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: int, limit: int
) -> int:
    """Groups of `completions` rows of up to `limit` tokens whose keys and values fit; at least 1.

    All of them where the model's config does not tell its sizes.
    """
    token = bytes_per_token(model)
    longest = max(map(len, prompts), default=0)
    group = token * (longest + completions * limit)
    if not group:
        return max(1, len(prompts))
    return max(1, min(len(prompts), int(SHARE * _free_bytes(model.device) / group)))


def bytes_per_token(model: nn.Module) -> int:
    """Bytes of one token's keys and values in all layers; 0 where the config does not tell."""
    config = model.config
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not heads or not layers:
        return 0
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * layers * key_heads * size * next(model.parameters()).element_size()


def _free_bytes(device: torch.device) -> int:
    """On a GPU what the driver and torch's own pool have left, elsewhere the machine's memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
