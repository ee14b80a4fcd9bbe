"""The vllm engine on a GPU: shared weights in half precision, CUDA graphs, KV pages given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.vllm_build import STOP, needs_vllm, rows_of, train_steps
from visa_core.config.vllm import VLLMSettings
from visa_core.rollout.factory import make_engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.types import RolloutBatch

pytestmark = [pytest.mark.gpu, needs_vllm]

PROMPTS = rows_of((30, 70, 5), seed=1)
FREE = SamplingConfig(max_new_tokens=24)
GIB = 2**30


@pytest.fixture(scope="module")
def joined() -> Iterator[tuple[nn.Module, Any]]:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=256,
        eos_token_id=STOP,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to("cuda", torch.bfloat16).eval()
    settings = VLLMSettings(kv_cache_gib=4, max_rows=32)
    engine = make_engine("vllm", model, stop_ids=[STOP], pad_id=0, max_length=128, vllm=settings)
    yield model, engine
    engine.close()
    assert all(p.is_cuda and p.isfinite().all() for p in model.parameters())


@torch.no_grad()
def worst_gap(model: nn.Module, rollouts: RolloutBatch) -> float:
    gaps = []
    given = rollouts.logprobs.split(rollouts.lengths.tolist())
    for row, group, logprobs in zip(rollouts.rows(), rollouts.group_ids, given, strict=True):
        ids = torch.tensor([PROMPTS[group] + row], device="cuda")
        logits = model(ids).logits[0, len(PROMPTS[group]) - 1 : -1].float()
        own = logits.log_softmax(-1).gather(1, torch.tensor(row, device="cuda")[:, None])[:, 0]
        gaps.append((own.cpu() - logprobs).abs().max())
    return float(torch.stack(gaps).max())


def test_one_copy_through_updates(joined: tuple[nn.Module, Any]) -> None:
    from visa_core.rollout.colocated.weight_map import shared_bytes

    model, engine = joined
    whole = sum(p.nbytes for p in model.parameters())
    assert shared_bytes(model.named_parameters(), engine.vllm_model) == (whole, 0)
    before = engine.generate(PROMPTS, 4, FREE, seed=0)
    assert worst_gap(model, before) < 0.1
    for _ in range(3):
        engine.release()
        train_steps(model, 5)
        engine.weights_updated()
        assert worst_gap(model, engine.generate(PROMPTS, 4, FREE, seed=0)) < 0.1
    assert worst_gap(model, before) > 0.5, "the updates changed the model"


def test_kv_pages_are_given_back_and_weights_stay(joined: tuple[nn.Module, Any]) -> None:
    model, engine = joined
    first = engine.generate(PROMPTS, 4, FREE, seed=3)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    free = torch.cuda.mem_get_info()[0]
    engine.release()
    assert torch.cuda.mem_get_info()[0] - free > 3.5 * GIB
    assert all(p.equal(weights[name]) for name, p in model.named_parameters())
    again = engine.generate(PROMPTS, 4, FREE, seed=3)
    assert again.tokens.equal(first.tokens)
    assert torch.cuda.mem_get_info()[0] < free + 0.5 * GIB
