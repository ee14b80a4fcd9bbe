"""The engine against transformers' own generation and against teacher forcing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from transformers import PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.lms import KINDS, OTHER_KINDS, PAD, STOP, VOCAB, random_lm, random_rows
from visa_core.rollout.chunks import generate_in_chunks, joined
from visa_core.rollout.decoding import memory
from visa_core.rollout.errors import RolloutError
from visa_core.rollout.hf import HFEngine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.types import FinishReason, RolloutBatch

PROMPTS = random_rows((3, 9, 1, 6), seed=4)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module", params=KINDS + OTHER_KINDS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_lm(request.param, seed=2, std=0.4)


def engine(model: PreTrainedModel, stop: list[int] | None = None) -> HFEngine:
    return HFEngine(model, stop or [STOP], PAD)


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: list[int], row: list[int], t: float) -> torch.Tensor:
    """Logprobs of a row's tokens, one sequence by itself, no cache and no padding."""
    logits = model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / t).log_softmax(-1).gather(1, torch.tensor(row)[:, None])[:, 0]


def test_greedy_equals_transformers(model: PreTrainedModel) -> None:
    stop = stops_that_act(model)
    rollouts = engine(model, stop).generate(PROMPTS, 1, GREEDY, seed=0)
    expected = [greedy(model, prompt, stop) for prompt in PROMPTS]
    assert rollouts.rows() == expected
    assert rollouts.finished.tolist() == [row[-1] in stop for row in expected]
    assert set(rollouts.finished.tolist()) == {True, False}, "both ends must occur"


def greedy(model: PreTrainedModel, prompt: list[int], stop: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=stop,
        pad_token_id=PAD,
    )
    return out[0, len(prompt) :].tolist()


def stops_that_act(model: PreTrainedModel) -> list[int]:
    """A token that the first prompt's greedy row reaches, and the one that no row reaches."""
    rows = [greedy(model, prompt, [PAD]) for prompt in PROMPTS]
    acting = next(
        token
        for row in rows
        for token in row[1:]
        if 0 < sum(token in other for other in rows) < len(rows)
    )
    return [acting, PAD]


def sampled(model: PreTrainedModel, seed: int, **options: float) -> RolloutBatch:
    """Four prompts, five rows each; a sixth of the vocabulary stops, so rows leave at all times."""
    config = SamplingConfig(max_new_tokens=10, **options)
    return engine(model, list(range(1, VOCAB, 6))).generate(PROMPTS, 5, config, seed)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_logprobs_are_those_of_teacher_forcing(model: PreTrainedModel, temperature: float) -> None:
    rollouts = sampled(model, seed=3, temperature=temperature)
    given = rollouts.logprobs.split(rollouts.lengths.tolist())
    for row, group, logprobs in zip(rollouts.rows(), rollouts.group_ids, given, strict=True):
        expected = alone(model, PROMPTS[group], row, temperature)
        torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"temperature": 1.5, "top_k": 5}, [TemperatureLogitsWarper(1.5), TopKLogitsWarper(5)]),
        ({"top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"temperature": 1.3, "min_p": 0.2}, [TemperatureLogitsWarper(1.3), MinPLogitsWarper(0.2)]),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_logprobs_are_those_of_the_truncated_distribution(
    model: PreTrainedModel, options: dict[str, float], warpers: list[LogitsProcessor]
) -> None:
    rollouts = sampled(model, seed=3, **options)
    given = rollouts.logprobs.split(rollouts.lengths.tolist())
    for row, group, logprobs in zip(rollouts.rows(), rollouts.group_ids, given, strict=True):
        ids, start = torch.tensor([PROMPTS[group] + row]), len(PROMPTS[group])
        with torch.no_grad():
            logits = model(ids).logits[0, start - 1 : -1]
        kept = LogitsProcessorList(warpers)(ids, logits).double().log_softmax(-1)
        expected = kept.gather(1, torch.tensor(row)[:, None])[:, 0]
        torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)


def test_pairs_of_tokens_come_as_often_as_the_model_says(model: PreTrainedModel) -> None:
    prompt, rows = PROMPTS[0], 4000
    config = SamplingConfig(temperature=1.2, max_new_tokens=2)
    found = engine(model).generate([prompt], rows, config, seed=1, stop_ids=[])
    with torch.no_grad():
        ids = torch.tensor([[*prompt, token] for token in range(VOCAB)])
        logits_VTV = model(ids).logits[:, -2:].double() / 1.2
    first_V, second_VV = logits_VTV[0, 0].softmax(-1), logits_VTV[:, 1].softmax(-1)
    expected = (first_V[:, None] * second_VV).flatten().numpy() * rows
    counts = torch.bincount(found.tokens.view(rows, 2) @ torch.tensor([VOCAB, 1]), minlength=1600)
    often = expected >= 5
    grouped = [np.append(x[often], x[~often].sum()) for x in (counts.numpy(), expected)]
    assert chisquare(*grouped).pvalue > 1e-4


def test_rows_end_at_their_stop_token_or_at_the_limit(model: PreTrainedModel) -> None:
    rollouts = sampled(model, seed=5)
    stop = set(range(1, VOCAB, 6))
    lengths = set()
    for row, finished in zip(rollouts.rows(), rollouts.finished.tolist(), strict=True):
        assert not stop & set(row[:-1]), "nothing is sampled past a stop token"
        assert finished == (row[-1] in stop), "the stop token is kept"
        assert finished or len(row) == 10
        lengths.add(len(row))
    assert len(lengths) > 3
    assert rollouts.group_ids.tolist() == [i for i in range(4) for _ in range(5)]
    assert rollouts.cu_seqlens.tolist()[-1] == len(rollouts.tokens) == len(rollouts.logprobs)


def test_finished_rows_leave_the_batch(model: PreTrainedModel) -> None:
    counts: list[int] = []
    found = engine(model, list(range(1, VOCAB, 6)))
    found.generate(PROMPTS, 1, SamplingConfig(max_new_tokens=10), 0)  # its way is settled now
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    hook = inner.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        lengths = found.generate(PROMPTS, 5, SamplingConfig(max_new_tokens=10), 5).lengths
    finally:
        hook.remove()
    padded = len(PROMPTS) * max(map(len, PROMPTS))
    whole = sum(map(len, PROMPTS)) if found.why_plain is None else padded
    assert counts[0] == whole, "each prompt is read once"
    assert counts[1:] == [int((lengths > t).sum()) for t in range(1, int(lengths.max()))]


def test_which_way_a_model_goes(
    model: PreTrainedModel, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    found = engine(model)
    before = model.config._attn_implementation
    found.generate(PROMPTS, 2, GREEDY, 0)
    expected = {"window": "longer than the sliding window of 4", "gemma2": "sliding_attention"}
    reason = next((r for kind, r in expected.items() if f"[{kind}]" in request.node.name), None)
    if reason is None:
        assert found.why_plain is None and not caplog.messages
    else:
        assert reason in found.why_plain and reason in caplog.text
        assert "copies each prompt" in caplog.text
    assert model.config._attn_implementation == before
    assert not any("forward" in m.__dict__ for m in model.modules() if isinstance(m, nn.Linear))


def test_a_model_that_gives_no_numbers_is_told_of(model: PreTrainedModel) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RolloutError, match="logits are not finite"):
        engine(broken).generate(PROMPTS, 2, SamplingConfig(max_new_tokens=3), 0)


def test_rows_that_do_not_fit_together_are_sampled_one_after_another(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampled(model, seed=9)
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    one_group = memory.bytes_per_token(inner) * (9 + 5 * 10)
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2 * one_group / memory.SHARE)
    assert memory.groups_at_once(inner, PROMPTS, 5, 10) == 2
    assert sampled(model, seed=9).rows() == whole.rows()
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 1)
    assert sampled(model, seed=9).rows() == whole.rows()


def test_the_seed_decides(model: PreTrainedModel) -> None:
    first, again, other = (sampled(model, seed) for seed in (7, 7, 8))
    assert first.tokens.equal(again.tokens) and first.logprobs.equal(again.logprobs)
    assert first.rows() != other.rows()
    torch.manual_seed(123)
    assert sampled(model, 7).rows() == first.rows(), "the global random state plays no part"
    assert len({tuple(row) for row in first.rows()[:5]}) > 1, "rows of one prompt differ"


def test_a_prompt_is_answered_as_if_it_were_alone(model: PreTrainedModel) -> None:
    together = engine(model).generate(PROMPTS, 1, GREEDY, 0).rows()
    single = [engine(model).generate([p], 1, GREEDY, 0).rows()[0] for p in PROMPTS]
    assert together == single


def test_a_row_does_not_depend_on_the_others_in_the_call(model: PreTrainedModel) -> None:
    whole = sampled(model, seed=9)
    config = SamplingConfig(max_new_tokens=10)
    found = engine(model, list(range(1, VOCAB, 6)))
    chunks = list(generate_in_chunks(found, PROMPTS, 5, config, 9, size=3))
    assert [len(chunk.group_ids) for chunk in chunks] == [15, 5]
    together = joined(chunks)
    assert together.rows() == whole.rows()
    assert together.group_ids.equal(whole.group_ids)
    assert together.cu_seqlens.equal(whole.cu_seqlens)
    torch.testing.assert_close(together.logprobs, whole.logprobs, atol=1e-5, rtol=0)
    fewer = found.generate(PROMPTS[1:2], 2, config, 9, first_group=1)
    assert fewer.rows() == whole.rows()[5:7]
    with pytest.raises(ValueError, match="at least one prompt"):
        next(generate_in_chunks(found, PROMPTS, 5, config, 9, size=0))


def test_stop_tokens_of_one_call(model: PreTrainedModel) -> None:
    free = engine(model).generate(PROMPTS, 1, GREEDY, 0, stop_ids=[])
    assert not free.finished.any() and free.lengths.tolist() == [12] * 4
    stop = free.rows()[0][2]
    cut = engine(model).generate(PROMPTS, 1, GREEDY, 0, stop_ids=[stop])
    for row, whole in zip(cut.rows(), free.rows(), strict=True):
        assert row == (whole[: whole.index(stop) + 1] if stop in whole else whole)
    reasons = [FinishReason.STOP if f else FinishReason.LENGTH for f in cut.finished]
    assert cut.finish_reasons == reasons and str(cut.finish_reasons[0]) == "stop"


def test_sampling_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    model.train()
    try:
        rollouts = engine(model).generate(PROMPTS, 2, GREEDY, 0)
        assert model.training and not rollouts.logprobs.requires_grad
        assert all(weight.grad is None for weight in model.parameters())
    finally:
        model.eval()


def test_bad_requests(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"prompts \[1\] are empty"):
        engine(model).generate([[3], [], [4]], 2, GREEDY, 0)
    with pytest.raises(ValueError, match="at least one stop token"):
        HFEngine(model, [], PAD)
