"""Completion logits of a small Qwen3 and the gradients of its weights: prompts packed once, read
once into a cache, or copied for every completion and padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.registry import Case, Inputs, Op, Provider, register

PAD = 0
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
}


def case(prompts: int, prompt: int, group: int, completion: int, **about: Any) -> Case:
    """`group` completions for each prompt, three quarters of `completion` long on average."""

    def build(device: str) -> Inputs:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES)).to(device).eval()
        lengths = [
            completion - completion // 2 * (i % group) // group for i in range(prompts * group)
        ]
        return {
            "model": model,
            "prompts": [_ids(prompt - i % 3) for i in range(prompts)],
            "completions": [_ids(length) for length in lengths],
        }

    weights = 4 * (2 * SIZES["vocab_size"] * 256 + 4 * (256 * 256 * 3 + 3 * 256 * 768))
    return Case(
        name=f"{prompts}x({prompt}+{group}x{completion})",
        build=build,
        bytes_moved=3 * weights,
        **about,
    )


def _ids(length: int) -> list[int]:
    return torch.randint(1, SIZES["vocab_size"], (length,)).tolist()


def gradients(logits: Callable[[Inputs], tuple[Tensor, Tensor]]) -> Provider:
    """Log-probabilities of the completions and the gradients of the first layer's weights."""

    def run(inputs: Inputs) -> list[Tensor]:
        model = inputs["model"]
        model.zero_grad(set_to_none=True)
        rows, tokens = logits(inputs)
        logprobs = rows.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        logprobs.sum().backward()
        attention = model.model.layers[0].self_attn
        return [logprobs.detach(), attention.k_proj.weight.grad, attention.v_proj.weight.grad]

    return run


def copied(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """One padded row per completion, its prompt in front."""
    from visa_core.training.forward import completion_logits

    inputs["model"].set_attn_implementation("sdpa")
    group = len(inputs["completions"]) // len(inputs["prompts"])
    prompts = [prompt for prompt in inputs["prompts"] for _ in range(group)]
    return completion_logits(inputs["model"], prompts, inputs["completions"], PAD)


def cached(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The trainers' path: prompts in one pass, padded completions on their keys and values."""
    from visa_core.training.forward import completion_logits

    inputs["model"].set_attn_implementation("sdpa")
    return completion_logits(inputs["model"], inputs["prompts"], inputs["completions"], PAD)


def packed(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """One row of all prompts and completions through shared_prefix_attention."""
    from visa_core.training.packed_attention import completion_logits, enable_shared_prefix

    enable_shared_prefix(inputs["model"])
    return completion_logits(inputs["model"], inputs["prompts"], inputs["completions"])


register(
    Op(
        name="completion_logits",
        cases=(
            case(1, 512, 8, 256, devices=("cpu",)),
            case(2, 384, 8, 96),
            case(4, 64, 8, 34, devices=("cpu",)),
            case(16, 512, 8, 256, devices=("cuda",)),
        ),
        providers={
            "eager": gradients(copied),
            "cached": gradients(cached),
            "packed": gradients(packed),
        },
        notes={
            "eager": "a copy of the prompt per completion, padded, torch SDPA",
            "cached": "visa_core.training.forward: prompts once, completions padded",
            "packed": "visa_core.training.packed_attention",
        },
        rtol=1e-3,
        atol=1e-4,
    )
)
