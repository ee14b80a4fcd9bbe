"""The vllm engine's other ways: more families, its own copy of the weights, adapters, refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.vllm_build import (
    FOLDER,
    LONGEST,
    STOP,
    attach,
    family_model,
    needs_vllm,
    rows_of,
    train_steps,
)
from visa_core.config.vllm import VLLMSettings
from visa_core.rollout.factory import make_engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.types import RolloutBatch

pytestmark = [needs_vllm, pytest.mark.slow]

PROMPTS = rows_of((3, 40, 7), seed=4)
FREE = SamplingConfig(max_new_tokens=16, temperature=0.9)
ROOM = {"kv_cache_gib": 0.05, "max_rows": 32}


def start(model: nn.Module, keeps_storage: bool = True, **settings: Any) -> Any:
    attach()
    return make_engine(
        "vllm",
        model,
        stop_ids=[STOP],
        pad_id=0,
        max_length=LONGEST,
        vllm=VLLMSettings(**ROOM | settings),
        keeps_storage=keeps_storage,
    )


@torch.no_grad()
def worst_gap(model: nn.Module, rollouts: RolloutBatch) -> float:
    """Largest difference to the model's own logprobs, one row by itself."""
    gaps = []
    given = rollouts.logprobs.split(rollouts.lengths.tolist())
    for row, group, logprobs in zip(rollouts.rows(), rollouts.group_ids, given, strict=True):
        prompt = PROMPTS[group]
        logits = model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
        own = (logits.double() / 0.9).log_softmax(-1).gather(1, torch.tensor(row)[:, None])[:, 0]
        gaps.append((own - logprobs).abs().max())
    return float(torch.stack(gaps).max())


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_biases_and_untied_heads_are_shared_too(family: str) -> None:
    from visa_core.rollout.colocated.weight_map import shared_bytes

    model = family_model(family)
    engine = start(model)
    try:
        whole = sum(p.nbytes for p in model.parameters())
        assert shared_bytes(model.named_parameters(), engine.vllm_model) == (whole, 0)
        train_steps(model, 20)
        engine.weights_updated()
        assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) <= 1e-5
    finally:
        engine.close()
    train_steps(model, 1)  # the model goes on without vLLM


@pytest.fixture(scope="module")
def copied() -> Iterator[tuple[nn.Module, Any]]:
    """A model beside an engine with weights of its own, as under ZeRO."""
    model = family_model("qwen3", seed=3)
    found = start(model, weights="copy", bucket_mib=1)
    yield model, found
    found.close()


def test_an_update_is_copied(copied: tuple[nn.Module, Any]) -> None:
    from visa_core.rollout.colocated.weight_map import shared_bytes

    model, engine = copied
    assert shared_bytes(model.named_parameters(), engine.vllm_model)[0] == 0
    assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) <= 1e-5
    train_steps(model, 3)
    assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) > 1e-2
    engine.weights_updated()
    assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) <= 1e-5


def test_gathered_buckets_by_map_and_by_vllms_loader(
    copied: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visa_core.rollout.colocated.weight_copy import buckets

    model, engine = copied
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    size = sum(tensor.nbytes for tensor in whole.values())
    expected = engine.generate(PROMPTS, 3, FREE, 2)
    for places in (engine.places, None):
        monkeypatch.setattr(engine, "places", places)
        for parameter in engine.vllm_model.parameters():
            parameter.data.fill_(0.25)
        assert engine.load_weights(buckets(whole.items(), 2**15)) == size
        found = engine.generate(PROMPTS, 3, FREE, 2)
        assert found.tokens.equal(expected.tokens)
        assert found.logprobs.equal(expected.logprobs)


def test_partitioned_parameters_wait_for_gathered_buckets() -> None:
    model = family_model("qwen3")
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = start(model, keeps_storage=False)
    try:
        model.model.norm.weight.ds_id = 0  # as DeepSpeed marks a partitioned parameter
        with pytest.raises(ValueError, match="model.norm.weight is partitioned: call load_weights"):
            engine.weights_updated()
        engine.load_weights([list(whole.items())])
        assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) <= 1e-5
    finally:
        engine.close()


def lora(model: nn.Module, **options: Any) -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], **options
    )
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped


def test_adapters_are_merged_into_vllms_weights_and_the_base_stays() -> None:
    from visa_core.rollout.colocated.weight_map import shared_bytes

    model = lora(family_model("qwen3"))
    base = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
    assert len(base) == 6
    engine = start(model)
    try:
        assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) <= 1e-5
        with model.disable_adapter():
            assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) > 1e-2
        for _ in range(20):
            train_steps(model, 1, lr=1e-2)
            engine.weights_updated()
        assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) <= 1e-5
        assert all(model.get_parameter(n).equal(p) for n, p in base.items()), "no drift"
        inside, outside = shared_bytes(model.named_parameters(), engine.vllm_model)
        trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        assert outside == sum(p.nbytes for p in base.values()) + trained and inside > 0
    finally:
        engine.close()


def test_a_head_trained_beside_adapters_is_shared() -> None:
    model = lora(family_model("llama"), modules_to_save=["lm_head"])
    engine = start(model)
    try:
        train_steps(model, 5, lr=1e-2)
        engine.weights_updated()
        assert worst_gap(model, engine.generate(PROMPTS, 3, FREE, 1)) <= 1e-5
        head = model.base_model.model.lm_head.modules_to_save["default"].weight
        assert engine.vllm_model.lm_head.weight.data_ptr() == head.data_ptr()
    finally:
        engine.close()


def test_adapters_that_are_no_sum_are_refused() -> None:
    with pytest.raises(ValueError, match="adapter 'default' is DoRA.*Use --engine hf"):
        start(lora(family_model("qwen3"), use_dora=True))
    merged = lora(family_model("qwen3"))
    merged.merge_adapter()
    with pytest.raises(ValueError, match="its adapter is merged; call unmerge_adapter"):
        start(merged)


def test_what_vllm_cannot_run_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = Qwen3Config(
        vocab_size=40, num_hidden_layers=1, num_key_value_heads=1, head_dim=16, **sizes
    )
    with pytest.raises(ValueError, match=r"heads have 16 dimensions; vLLM.*32, 64.*--engine hf"):
        start(Qwen3ForCausalLM(config))
    quantised = family_model("qwen3")
    quantised.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ValueError, match="the model is quantised"):
        start(quantised)

    class OurOwnForCausalLM(Qwen3ForCausalLM):
        pass

    with pytest.raises(ValueError, match="vLLM has no model of class OurOwnForCausalLM"):
        start(OurOwnForCausalLM(family_model("qwen3").config))


def test_the_folder_comes_last_on_the_path() -> None:
    assert attach()
    if str(FOLDER) in sys.path:
        assert sys.path.index(str(FOLDER)) > max(
            i for i, path in enumerate(sys.path) if path.endswith("site-packages")
        )
