"""Translator: three texts in, a shift of up to two out."""

from __future__ import annotations

import pytest
import torch

from visa_core.models.translator import Translator

INSTRUCTIONS = ["make it freer", "more rules please", "less power and much more care"]
QUERIES = ["what now?", "is it far?", "who are you?"]
RESPONSES = ["go home and rest", "about 20 miles to the north of the river", "a friend"]
TEXTS = (INSTRUCTIONS, QUERIES, RESPONSES)


@pytest.fixture(scope="module")
def translator() -> Translator:
    torch.manual_seed(0)
    words = [text for column in TEXTS for text in column]
    return Translator.create("builtin", texts=words, hidden_size=32).eval()


def test_batched_prediction_equals_one_by_one(translator):
    together = translator.predict(*TEXTS, batch_size=2)
    alone = torch.cat([translator.predict(*([t] for t in row)) for row in zip(*TEXTS, strict=True)])
    assert together.shape == (3, 10) and torch.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 1e-4


def test_each_of_the_three_texts_is_read(translator):
    base = translator.predict(["a"], ["b"], ["c"])
    for changed in (["z"], ["b"], ["c"]), (["a"], ["z"], ["c"]), (["a"], ["b"], ["z"]):
        assert not torch.allclose(translator.predict(*changed), base, atol=1e-6)


def test_shifts_reach_two_and_no_further(translator):
    with torch.no_grad():
        translator.vector_head.score.bias.sub_(50)
    try:
        assert torch.equal(translator.predict(*TEXTS), torch.full((3, 10), -2.0))
    finally:
        with torch.no_grad():
            translator.vector_head.score.bias.add_(50)


def test_saved_and_loaded_translators_agree_exactly(translator, tmp_path):
    translator.save_pretrained(tmp_path / "t")
    loaded = Translator.from_pretrained(tmp_path / "t")
    assert torch.equal(loaded.predict(*TEXTS), translator.predict(*TEXTS))
