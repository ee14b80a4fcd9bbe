"""Untrained causal LMs of several architectures, small and far from uniform."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 40
PAD, STOP = 0, 1
KINDS = ("qwen3", "llama")
OTHER_KINDS = ("qwen2", "mistral", "window", "gemma2", "lora")
"""qwen2: biases and tied head; mistral: four query heads on two; window: a sliding window of 4
tokens; gemma2: capped scores and windows; lora: a Qwen3 wrapped by peft.
"""


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
    if kind in OTHER_KINDS:
        return _other_lm(kind, sizes).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes)).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def _other_lm(kind: str, sizes: dict[str, Any]) -> PreTrainedModel:
    grouped = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))
        with torch.no_grad():
            for layer in model.model.layers:
                for name in ("q_proj", "k_proj", "v_proj"):
                    getattr(layer.self_attn, name).bias.normal_(std=0.3)
        return model
    if kind in ("mistral", "window"):
        window = 4 if kind == "window" else None
        return MistralForCausalLM(MistralConfig(**grouped, sliding_window=window))
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**grouped, sliding_window=4))
    return _with_adapters(Qwen3ForCausalLM(Qwen3Config(**sizes)))


def _with_adapters(model: PreTrainedModel) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj", "down_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:  # starts at zero, as if there were no adapter
                weight.normal_(std=0.2)
    return wrapped


def random_rows(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    """Token ids of rows with these lengths, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]
