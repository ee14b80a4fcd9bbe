"""vLLM for tests: where it is found, and small models of the families it shares weights with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FOLDER = Path(sys.prefix) / "vllm"
"""Where `make test` puts vLLM's build for CPUs, away from the other packages."""


def attach() -> bool:
    """Put that folder behind all others on the path; whether vLLM can then be imported."""
    if importlib.util.find_spec("vllm") is None and FOLDER.is_dir():
        sys.path.append(str(FOLDER))
        importlib.invalidate_caches()
    return importlib.util.find_spec("vllm") is not None


def environment() -> dict[str, str]:
    """For processes of their own: the path that finds vLLM."""
    return {"PYTHONPATH": str(FOLDER)} if FOLDER.is_dir() else {}


needs_vllm = pytest.mark.skipif(
    not FOLDER.is_dir() and importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed; `make test` installs its build for CPUs on Linux x86_64",
)

FAMILIES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel], dict[str, object]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32, "tie_word_embeddings": True}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"head_dim": 32, "tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "mistral": (MistralConfig, MistralForCausalLM, {"head_dim": 32, "sliding_window": None}),
}
"""qwen3: q and k norms, tied head. llama, mistral: untied head. qwen2: biases."""

VOCAB, STOP, LONGEST = 131, 1, 96


def family_model(family: str, seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """A random model: fused rows of unequal sizes, a vocabulary that vLLM pads to 192."""
    config, model, own = FAMILIES[family]
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.15,
        "pad_token_id": 0,
        "eos_token_id": STOP,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    built = model(config(**sizes | own)).eval()
    with torch.no_grad():  # biases and norms start at constants: give every tensor its own values
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def rows_of(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    """Token ids of rows with these lengths, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def train_steps(model: torch.nn.Module, steps: int, lr: float = 1e-3, seed: int = 0) -> None:
    """Real AdamW updates of the model on random rows."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        ids = torch.randint(2, VOCAB, (4, 24), generator=generator)
        device = next(model.parameters()).device
        model(input_ids=ids.to(device), labels=ids.to(device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
