"""The vllm engine on real vLLM: one copy of the weights, logprobs those of the trained module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.vllm_build import (
    LONGEST,
    STOP,
    VOCAB,
    attach,
    family_model,
    needs_vllm,
    rows_of,
    train_steps,
)
from visa_core.config.vllm import VLLMSettings
from visa_core.rollout.errors import RolloutError
from visa_core.rollout.factory import make_engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.types import RolloutBatch

pytestmark = [needs_vllm, pytest.mark.slow]

SMALL = VLLMSettings(kv_cache_gib=0.05, max_rows=32)
PROMPTS = rows_of((3, 40, 1, 7), seed=4)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)
FREE = SamplingConfig(max_new_tokens=16)


def start(model: PreTrainedModel, settings: VLLMSettings = SMALL) -> Any:
    attach()
    return make_engine("vllm", model, stop_ids=[STOP], pad_id=0, max_length=LONGEST, vllm=settings)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return family_model(request.param)


@pytest.fixture(scope="module")
def engine(model: PreTrainedModel) -> Iterator[Any]:
    found = start(model)
    yield found
    found.close()


@torch.no_grad()
def teacher_forced(
    model: PreTrainedModel, rollouts: RolloutBatch, warpers: LogitsProcessorList, prompts: Any
) -> torch.Tensor:
    """Logprobs [N] by transformers alone: one row by itself, no cache, its own truncation."""
    found = []
    for row, group in zip(rollouts.rows(), rollouts.group_ids.tolist(), strict=True):
        ids = torch.tensor([prompts[group] + row])
        logits = model(ids).logits[0, len(prompts[group]) - 1 : -1]
        kept = warpers(ids, logits).double().log_softmax(-1)
        found.append(kept.gather(1, torch.tensor(row)[:, None])[:, 0])
    return torch.cat(found)


def worst_gap(model: PreTrainedModel, rollouts: RolloutBatch, prompts: Any = PROMPTS) -> float:
    expected = teacher_forced(model, rollouts, LogitsProcessorList(), prompts)
    return float((rollouts.logprobs.double() - expected).abs().max())


def test_every_parameter_is_a_view_of_vllms_tensors(model: PreTrainedModel, engine: Any) -> None:
    from visa_core.rollout.colocated.weight_map import shared_bytes

    whole = sum(p.nbytes for p in model.parameters())
    assert shared_bytes(model.named_parameters(), engine.vllm_model) == (whole, 0)
    layer = model.model.layers[1]
    theirs = dict(engine.vllm_model.named_parameters())
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    with torch.no_grad():
        attention.k_proj.weight[0, 0] += 1
    fused = theirs["model.layers.1.self_attn.qkv_proj.weight"]
    assert fused.equal(torch.cat(projections))
    assert fused.data_ptr() == attention.q_proj.weight.data_ptr()
    both = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    assert theirs["model.layers.1.mlp.gate_up_proj.weight"].equal(both)
    padded = theirs["model.embed_tokens.weight"]
    assert padded.shape[0] == 192 and padded[:VOCAB].equal(model.get_input_embeddings().weight)
    assert not padded[VOCAB:].any()


def test_after_twenty_updates_both_agree(model: PreTrainedModel, engine: Any) -> None:
    before = engine.generate(PROMPTS, 3, FREE, seed=1)
    assert worst_gap(model, before) <= 1e-5
    train_steps(model, steps=20)
    engine.weights_updated()
    after = engine.generate(PROMPTS, 3, FREE, seed=1)
    assert worst_gap(model, after) <= 1e-5
    old = teacher_forced(model, before, LogitsProcessorList(), PROMPTS)
    assert (before.logprobs - old).abs().max() > 0.1, "the updates changed the model"


def test_greedy_equals_transformers(model: PreTrainedModel, engine: Any) -> None:
    rollouts = engine.generate(PROMPTS, 1, GREEDY, seed=0)
    for prompt, row in zip(PROMPTS, rollouts.rows(), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=[STOP],
            pad_token_id=0,
        )
        assert row == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        (
            {"temperature": 1.5, "top_k": 5},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(5)],
        ),
        ({"top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"temperature": 1.3, "min_p": 0.2}, [TemperatureLogitsWarper(1.3), MinPLogitsWarper(0.2)]),
    ],
    ids=["temperature", "top_k", "top_p", "min_p"],
)
def test_logprobs_are_those_of_the_truncated_distribution(
    model: PreTrainedModel, engine: Any, sampling: dict[str, float], warpers: list[Any]
) -> None:
    config = SamplingConfig(max_new_tokens=16, **sampling)
    rollouts = engine.generate(PROMPTS, 4, config, seed=2)
    expected = teacher_forced(model, rollouts, LogitsProcessorList(warpers), PROMPTS)
    torch.testing.assert_close(rollouts.logprobs.double(), expected, atol=1e-5, rtol=0)


def test_the_seed_decides_each_row_alone(engine: Any) -> None:
    first, again, other = (engine.generate(PROMPTS, 4, FREE, seed) for seed in (7, 7, 8))
    assert first.tokens.equal(again.tokens) and first.logprobs.equal(again.logprobs)
    assert first.rows() != other.rows()
    assert len({tuple(row) for row in first.rows()[:4]}) > 1, "rows of one prompt differ"
    torch.manual_seed(123)
    state = torch.get_rng_state()
    share = engine.generate(PROMPTS[2:], 4, FREE, 7, first_group=2)
    assert torch.get_rng_state().equal(state), "the global random state plays no part"
    assert share.rows() == first.rows()[8:], "a rank's share equals its part of the whole"
    assert share.group_ids.tolist() == [0] * 4 + [1] * 4


def test_rows_end_at_stop_tokens_or_at_the_limit(engine: Any) -> None:
    stops = list(range(1, VOCAB, 5))
    rollouts = engine.generate(PROMPTS, 5, FREE, seed=5, stop_ids=stops)
    assert rollouts.group_ids.tolist() == [i for i in range(4) for _ in range(5)]
    for row, finished in zip(rollouts.rows(), rollouts.finished.tolist(), strict=True):
        assert not set(stops) & set(row[:-1]), "nothing is sampled past a stop token"
        assert finished == (row[-1] in stops)
        assert finished or len(row) == 16
    assert {True, False} <= set(rollouts.finished.tolist()) or rollouts.finished.all()


def test_cached_prompts_are_forgotten_after_an_update(model: PreTrainedModel, engine: Any) -> None:
    prompt = rows_of((64,), seed=9)
    engine.generate(prompt, 2, FREE, seed=0)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(-1)
    stale = engine.generate(prompt, 2, FREE, seed=0)
    assert worst_gap(model, stale, prompt) > 1e-3, "without the call old keys and values are used"
    engine.weights_updated()
    fresh = engine.generate(prompt, 2, FREE, seed=0)
    assert worst_gap(model, fresh, prompt) <= 1e-5


def test_kv_memory_is_given_back_and_taken_again(model: PreTrainedModel, engine: Any) -> None:
    first = engine.generate(PROMPTS, 4, FREE, seed=3)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    held = [storage for storage, _ in engine.kv._sizes.values()]
    assert sum(storage.nbytes() for storage in held) == engine.kv.nbytes > 40 * 2**20
    engine.release()
    assert sum(storage.nbytes() for storage in held) == 0
    assert all(p.equal(weights[name]) for name, p in model.named_parameters())
    train_steps(model, steps=0)
    again = engine.generate(PROMPTS, 4, FREE, seed=3)
    assert sum(storage.nbytes() for storage in held) == engine.kv.nbytes
    assert again.tokens.equal(first.tokens) and again.logprobs.equal(first.logprobs)


def test_shared_weights_are_saved_as_any_others(
    model: PreTrainedModel, engine: Any, tmp_path: Any
) -> None:
    from visa_core.training.checkpoint import load_checkpoint, save_checkpoint

    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    path = save_checkpoint(tmp_path, 3, {"model": model.state_dict()})
    step, state = load_checkpoint(path)
    assert step == 3
    for name, parameter in model.named_parameters():
        assert loaded.get_parameter(name).equal(parameter)
        assert state["model"][name].equal(parameter)
    size = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    assert size < 1.2 * sum(p.nbytes for p in model.parameters()), "no fused tensor is written"


def test_another_model_is_refused_with_every_reason(model: PreTrainedModel, engine: Any) -> None:
    from visa_core.rollout.colocated.weight_map import UnmappableError, weight_map

    other = family_model("llama" if type(model).__name__.startswith("Qwen3") else "qwen3")
    named = list(other.named_parameters(remove_duplicate=False))
    with pytest.raises(UnmappableError) as refused:
        weight_map(named, engine.vllm_model)
    text = "\n".join(refused.value.problems)
    assert "tied to model.embed_tokens.weight" in text
    halves = [(n, p.half()) for n, p in model.named_parameters(remove_duplicate=False)]
    with pytest.raises(UnmappableError, match=r"dtype torch.float16.*torch.float32"):
        weight_map(halves, engine.vllm_model)


def test_bad_requests(engine: Any) -> None:
    with pytest.raises(ValueError, match=r"prompts \[1\] are empty"):
        engine.generate([[3], []], 2, GREEDY, 0)
    with pytest.raises(ValueError, match="make 113 tokens, but vLLM was started for 96"):
        engine.generate([[3] * 97], 2, FREE, 0)
    with pytest.raises(ValueError, match="shared with vLLM: there is nothing to load"):
        engine.load_weights([])


def test_a_failure_in_mid_run_is_one_sentence_and_final(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    run = engine.worker.model_runner.execute_model

    def failing(*args: Any, **options: Any) -> Any:
        steps.append(1)
        if len(steps) > 3:
            raise RuntimeError("the device was lost")
        return run(*args, **options)

    monkeypatch.setattr(engine.worker.model_runner, "execute_model", failing)
    with pytest.raises(RolloutError, match=r"RuntimeError: the device was lost.*--resume"):
        engine.generate(PROMPTS, 2, FREE, seed=0)
    with pytest.raises(RolloutError, match="cannot be used any more: it failed with RuntimeError"):
        engine.generate(PROMPTS, 2, FREE, seed=0)
