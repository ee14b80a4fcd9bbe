"""Untrained causal LMs of two architectures, small and far from uniform."""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 40
PAD, STOP = 0, 1
KINDS = ("qwen3", "llama")


def random_lm(kind: str, seed: int = 0, std: float = 0.15) -> PreTrainedModel:
    """Two layers, two query heads on one key head; wide weights, so that text changes logits."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": std,
        "pad_token_id": PAD,
        "eos_token_id": STOP,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes)).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def random_rows(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    """Token ids of rows with these lengths, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]
