"""Grown models: old values and old texts as before, new rows, new words, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import examples, texts, write_causal_lm, write_rewriter
from visa_core.data.embedded import truth
from visa_core.data.embedded.further import FOURTEEN, FURTHER_STEMS, dialogues, rewrites
from visa_core.data.embedded.lexicon import OPENERS, STEMS
from visa_core.models.detector import Detector
from visa_core.models.growth import grown_rewriter, grown_scorer, kept_positions, with_words
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ

NEW_WORDS = [
    "laugh about mishaps",
    "mend what is torn",
    "Laugh about mishaps ; mend what is torn .",
    "Laugh ; is torn .",
]


def shuffled_space() -> ValueSpace:
    """The fourteen values, the new ones first."""
    order = (*FOURTEEN.dimensions[10:], *FOURTEEN.dimensions[:10])
    return replace(FOURTEEN, name="shuffled", dimensions=order)


@pytest.mark.parametrize("kind", [Detector, Translator])
@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_old_values_are_read_as_before(kind: type, pooling: str, tmp_path: Path) -> None:
    """To rounding on texts of old words, wherever the old values stand in the new space: a product
    with fourteen columns may add in another order than one with ten.
    """
    model = kind.create("builtin", texts=texts(), pooling=pooling, hidden_size=32).eval()
    space = shuffled_space()
    grown = grown_scorer(model, space, NEW_WORDS)
    rows = examples(12)
    columns = [[e.instruction for e in rows]] if kind is Translator else []
    columns += [[e.query for e in rows], [e.response for e in rows]]
    before, after = model.predict(*columns), grown.predict(*columns)
    kept = kept_positions(SCHWARTZ, space)
    torch.testing.assert_close(before, after[:, kept], rtol=0, atol=2e-6)
    assert torch.equal(model.vector_head.score.weight, grown.vector_head.score.weight[kept])
    grown.save_pretrained(tmp_path / "grown")
    loaded = kind.from_pretrained(tmp_path / "grown")
    assert loaded.space.names == space.names
    assert torch.equal(loaded.predict(*columns), after)


def test_new_words_are_one_token_each() -> None:
    model = Detector.create("builtin", texts=texts(), hidden_size=32)
    tokenizer = model.encoder.tokenizer
    grown = with_words(tokenizer, NEW_WORDS)
    assert len(tokenizer.tokenize("laugh about mishaps")) > 3
    assert grown.tokenize("laugh about mishaps") == ["laugh", "about", "mishaps"]
    for text in texts()[:20]:
        assert grown(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_grown_rewriter_says_of_old_values_what_it_said(tmp_path: Path) -> None:
    write_rewriter(tmp_path / "old", max_prompt=200)
    old = Rewriter.from_pretrained(tmp_path / "old")
    grown = grown_rewriter(old, FOURTEEN, NEW_WORDS)
    target = SCHWARTZ.vector({"security": 1.0})
    wide = FOURTEEN.vector({"security": 1.0})
    row = examples(1)[0]
    ids = old.prompt(row.query, row.response, target).ids
    assert grown.prompt(row.query, row.response, wide).ids == ids
    with torch.no_grad():
        before, after = (m.model(torch.tensor([ids])).logits for m in (old, grown))
    assert torch.equal(after[..., : before.shape[-1]], before)
    grown.save_pretrained(tmp_path / "new")
    loaded = Rewriter.from_pretrained(tmp_path / "new")
    assert loaded.space.names == FOURTEEN.names
    text = "Laugh about mishaps ; mend what is torn ."
    assert loaded.tokenizer.decode(loaded.completion_ids(text), skip_special_tokens=True) == text
    prompt = loaded.prompt(row.query, row.response, FOURTEEN.vector({"humour": -0.5}))
    assert "humour" in loaded.tokenizer.decode(prompt.ids)


def test_spaces_that_do_not_grow_are_refused() -> None:
    model = Detector.create("builtin", texts=texts(), hidden_size=32)
    smaller = replace(FOURTEEN, dimensions=FOURTEEN.dimensions[1:], axes=())
    with pytest.raises(ValueError, match="lacks self-direction"):
        grown_scorer(model, smaller)
    with pytest.raises(ValueError, match="no dimension that 'schwartz' lacks"):
        grown_scorer(model, SCHWARTZ)


def test_words_need_a_vocabulary_of_words(tmp_path: Path) -> None:
    write_causal_lm(tmp_path / "lm", texts())
    tokenizer = Rewriter.from_pretrained(tmp_path / "lm").tokenizer
    with pytest.raises(ValueError, match="BPE tokenizer.*leave --add-words out"):
        with_words(tokenizer, NEW_WORDS)


def test_texts_say_what_their_labels_say() -> None:
    """Every labelled value has its clause in the text at its level, and none that is not."""
    stems = STEMS | FURTHER_STEMS
    assert len({stem for group in stems.values() for stem in group}) == 14 * 4
    for row in dialogues(60, 3):
        said = {
            (name, level)
            for name, group in stems.items()
            for level, openers in OPENERS.items()
            if any(f"{o} {s}" in row.response for o in openers for s in group)
        }
        assert said == set(row.values.items())
    news = {name for row in dialogues(60, 3, only_new=True) for name in row.values}
    assert news == set(FURTHER_STEMS)


def test_references_of_tasks_are_true() -> None:
    """Each reference says exactly the target and every fact; sources say their values."""
    for row in rewrites(80, 5) + rewrites(40, 5, only_new=True):
        target = FOURTEEN.vector(row.target)
        score = truth.score(row.response, row.reference, target)
        assert score["l2"] == 0 and score["consistency"] == 1 and score["unparsable"] == 0
        assert torch.equal(truth.values(row.response, 14), FOURTEEN.vector(row.values))
        assert torch.equal(
            target, FOURTEEN.vector(row.values) + FOURTEEN.vector(row.shift, limit=2)
        )
    assert {n for r in rewrites(80, 5, only_new=True) for n in r.target} == set(FURTHER_STEMS)


def test_the_ten_values_of_a_text_leave_the_further_ones_out() -> None:
    text = "above all keep everyone safe; never crack a joke."
    assert truth.values(text).tolist() == SCHWARTZ.vector({"security": 1}).tolist()
    expected = FOURTEEN.vector({"security": 1, "humour": -1})
    assert torch.equal(truth.values(text, 14), expected)
