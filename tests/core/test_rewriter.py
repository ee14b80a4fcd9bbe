"""The rewriter as a model: files, greedy and sampled text, limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from visa_core.models.rewriter import Rewriter
from visa_core.values import SCHWARTZ

EXAMPLES = tiny.examples(6)
QUERIES = [e.query for e in EXAMPLES]
RESPONSES = [e.response for e in EXAMPLES]
TARGETS = torch.stack([SCHWARTZ.vector(e.target or {}) for e in EXAMPLES])


@pytest.fixture(scope="module")
def rewriter(small_system: Path) -> Rewriter:
    return Rewriter.from_pretrained(small_system / "rewriter")


def test_saved_and_loaded_is_the_same(rewriter: Rewriter, tmp_path: Path) -> None:
    rewriter.save_pretrained(tmp_path / "again")
    loaded = Rewriter.from_pretrained(tmp_path / "again")
    weights, again = rewriter.model.state_dict(), loaded.model.state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert (loaded.template, loaded.space.names) == (rewriter.template, rewriter.space.names)
    assert (loaded.max_prompt, loaded.max_completion) == (160, 24)
    assert loaded.rewrite(QUERIES, RESPONSES, TARGETS) == rewriter.rewrite(
        QUERIES, RESPONSES, TARGETS
    )


def test_weights_are_safetensors_and_load_in_plain_transformers(
    rewriter: Rewriter, small_system: Path
) -> None:
    folder = small_system / "rewriter"
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = rewriter.prompt(QUERIES[0], RESPONSES[0], TARGETS[0])
    ids = model.generate(torch.tensor([prompt.ids]), do_sample=False, max_new_tokens=24)
    text = tokenizer.decode(ids[0, len(prompt.ids) :], skip_special_tokens=True).strip()
    assert text == rewriter.rewrite(QUERIES[:1], RESPONSES[:1], TARGETS[:1])[0] != ""


def test_greedy_is_the_default_and_ignores_the_seed(rewriter: Rewriter) -> None:
    first = rewriter.rewrite(QUERIES, RESPONSES, TARGETS)
    assert first == rewriter.rewrite(QUERIES, RESPONSES, TARGETS, temperature=0.0, seed=9)
    assert len(set(first)) > 1


def test_the_target_is_read(rewriter: Rewriter) -> None:
    prompts = [rewriter.prompt(QUERIES[0], RESPONSES[0], target).ids for target in TARGETS]
    assert len({tuple(ids) for ids in prompts}) == len({tuple(t.tolist()) for t in TARGETS})


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batches_equal_one_by_one_in_order(rewriter: Rewriter, batch_size: int) -> None:
    rows = zip(QUERIES, RESPONSES, TARGETS, strict=True)
    single = [rewriter.rewrite([q], [r], t[None])[0] for q, r, t in rows]
    assert rewriter.rewrite(QUERIES, RESPONSES, TARGETS, batch_size=batch_size) == single


def test_sampling_follows_the_seed(rewriter: Rewriter) -> None:
    def sample(seed: int) -> list[str]:
        return rewriter.rewrite(QUERIES, RESPONSES, TARGETS, temperature=1.0, seed=seed)

    assert sample(1) == sample(1) != sample(2)


def test_an_empty_batch_and_uneven_columns(rewriter: Rewriter) -> None:
    assert rewriter.rewrite([], [], torch.zeros(0, SCHWARTZ.size)) == []
    with pytest.raises(ValueError, match="shorter|longer"):
        rewriter.rewrite(QUERIES, RESPONSES[:2], TARGETS)


def test_prompts_and_completions_beyond_the_limit_are_refused(rewriter: Rewriter) -> None:
    with pytest.raises(ValueError, match=r"prompt has \d+ tokens, more than max_prompt = 160"):
        rewriter.prompt("a?", "soup " * 200, TARGETS[0])
    eos = rewriter.tokenizer.eos_token_id
    word = rewriter.completion_ids("the")
    assert word == [*rewriter.tokenizer("the")["input_ids"], eos] and len(word) == 2
    assert len(rewriter.completion_ids("the " * 22 + "the")) == 24
    with pytest.raises(ValueError, match="completion has 25 tokens, more than max_completion = 24"):
        rewriter.completion_ids("the " * 23 + "the")
    with pytest.raises(ValueError, match="response to rewrite is empty"):
        rewriter.prompt("a?", " \n", TARGETS[0])


def test_stop_tokens_come_from_the_generation_config_too(rewriter: Rewriter) -> None:
    ids = rewriter.tokenizer.convert_tokens_to_ids(["</s>", "<rewrite>"])
    before = rewriter.model.generation_config.eos_token_id
    try:
        rewriter.model.generation_config.eos_token_id = ids[1]
        assert rewriter.stop_ids == sorted(ids)
        rewriter.model.generation_config.eos_token_id = ids
        assert rewriter.stop_ids == sorted(ids)
        rewriter.model.generation_config.eos_token_id = None
        assert rewriter.stop_ids == ids[:1]
    finally:
        rewriter.model.generation_config.eos_token_id = before


def test_a_tokenizer_without_an_end_is_refused(rewriter: Rewriter, small_system: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_system / "rewriter")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        Rewriter(rewriter.model, tokenizer, rewriter.template)
