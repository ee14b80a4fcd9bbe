"""Fact analyzer: label orders, refusals, cutting, directions, repeats."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from visa_core.models.encoder import ModelFolderError
from visa_core.models.exact_match import TokenFeatures
from visa_core.models.fact_analyzer import AnalyzerSettings, FactAnalyzer
from visa_core.models.nli_labels import UnclearLabelsError, label_order
from visa_core.models.sentences import fit_pieces, premise_chunks, split_sentences

WORDS = (
    "the meeting at 4am is led by Amara Bruno train to Oslo leaves platform 7 needs rice lasts"
    " weeks a b c d . ,"
).split()
FIRST = "Amara led the meeting at 4am."
SECOND = "the train to Oslo leaves platform 7."
THIRD = "rice needs a b c weeks."


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def tiny_model(
    labels: tuple[str, ...] = ("entailment", "neutral", "contradiction"),
    limit: int = 64,
    types: int = 2,
) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=limit,
        type_vocab_size=types,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return BertForSequenceClassification(config)


def analyzer(limit: int = 64, **options: object) -> FactAnalyzer:
    return FactAnalyzer(tiny_model(limit=limit), tiny_tokenizer(), AnalyzerSettings(**options))


def featured(**options: object) -> FactAnalyzer:
    tokenizer = tiny_tokenizer()
    features = TokenFeatures.fit(tokenizer, [f"{FIRST} {SECOND}"] * 2)
    settings = AnalyzerSettings(**options)
    return FactAnalyzer(tiny_model(types=8), tokenizer, settings, features=features)


def direct(model: FactAnalyzer, premise: str, hypothesis: str) -> torch.Tensor:
    """Probabilities by Hugging Face calls alone, labels in the order of tiny_model's default."""
    inputs = model.tokenizer(premise, hypothesis, return_tensors="pt")
    with torch.no_grad():
        return model.model(**inputs).logits[0].softmax(-1)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    "names",
    [
        ("entailment", "neutral", "contradiction"),
        ("ENTAILMENT", "NEUTRAL", "CONTRADICTION"),
        ("Entail", "neutral", "contradicts"),
    ],
)
def test_label_order_is_read_for_every_order_and_spelling(
    order: tuple[int, ...], names: tuple[str, ...]
) -> None:
    id2label = {position: names[which] for position, which in enumerate(order)}
    found = label_order(id2label, "folder")
    assert [order[index] for index in found] == [0, 1, 2]


@pytest.mark.parametrize(
    "labels",
    [
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ("entailment", "neutral", "other"),
        ("entailment", "neutral"),
        ("entailment", "entails", "neutral"),
        ("positive", "negative"),
        ("entailment", "neutral", "contradiction", "not_entailment"),
        (),
    ],
)
def test_unclear_labels_are_refused_with_folder_and_labels(labels: tuple[str, ...]) -> None:
    with pytest.raises(UnclearLabelsError) as error:
        label_order(dict(enumerate(labels)), "models/some-nli")
    message = str(error.value)
    assert "models/some-nli" in message and "id2label" in message
    assert all(label in message for label in labels)


def test_unclear_labels_are_refused_when_loading_a_folder(tmp_path: Path) -> None:
    analyzer().save_pretrained(tmp_path / "nli")
    config = json.loads((tmp_path / "nli/config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    config["label2id"] = {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    (tmp_path / "nli/config.json").write_text(json.dumps(config))
    with pytest.raises(UnclearLabelsError, match="LABEL_0"):
        FactAnalyzer.from_pretrained(tmp_path / "nli")


def test_columns_follow_the_labels_not_the_outputs() -> None:
    shuffled = FactAnalyzer(
        tiny_model(("contradiction", "entailment", "neutral")), tiny_tokenizer()
    )
    inputs = shuffled.tokenizer(FIRST, SECOND, return_tensors="pt")
    raw = shuffled.model(**inputs).logits[0].detach().softmax(-1)
    assert torch.allclose(shuffled.predict([FIRST], [SECOND])[0], raw[[1, 2, 0]], atol=1e-6)


def test_two_labels_count_not_entailment_as_neutral() -> None:
    model = FactAnalyzer(tiny_model(("not_entailment", "entailment")), tiny_tokenizer())
    inputs = model.tokenizer(FIRST, SECOND, return_tensors="pt")
    raw = model.model(**inputs).logits[0].detach().softmax(-1)
    expected = torch.tensor([raw[1], raw[0], 0.0])
    assert torch.allclose(model.predict([FIRST], [SECOND])[0], expected, atol=1e-6)


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelFolderError, match="bare.*no tokenizer"):
        FactAnalyzer.from_pretrained(tmp_path / "bare")


def test_folder_without_model_or_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="not a model folder"):
        FactAnalyzer.from_pretrained(tmp_path / "absent")
    model = tiny_model()
    model.bert.save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder/config.json").read_text())
    config["id2label"] = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    (tmp_path / "encoder/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match="no trained classifier: it lacks classifier"):
        FactAnalyzer.from_pretrained(tmp_path / "encoder")


def test_save_and_load_keep_scores_and_settings(tmp_path: Path) -> None:
    model = featured(split="sentence", direction="source_entails_rewrite")
    model.save_pretrained(tmp_path / "nli")
    loaded = FactAnalyzer.from_pretrained(tmp_path / "nli")
    assert loaded.settings == model.settings
    text = f"{FIRST} {SECOND}"
    assert torch.equal(loaded.predict([text], [THIRD]), model.predict([text], [THIRD]))
    assert FactAnalyzer.from_pretrained(tmp_path / "nli", split="auto").settings.split == "auto"
    assert (tmp_path / "nli/model.safetensors").is_file()


@pytest.mark.parametrize("make", [analyzer, featured])
def test_batch_equals_single_in_order_with_repeats(make: Callable[[], FactAnalyzer]) -> None:
    model = make()
    texts = [FIRST, SECOND, THIRD, f"{FIRST} {SECOND}", "Oslo", FIRST]
    premises = [p for p in texts for _ in texts]
    hypotheses = [h for _ in texts for h in texts]
    batched = model.predict(premises, hypotheses, batch_size=5)
    single = torch.cat([model.predict([p], [h]) for p, h in zip(premises, hypotheses, strict=True)])
    assert torch.allclose(batched, single, atol=1e-6)
    assert torch.allclose(batched.sum(1), torch.ones(len(premises)), atol=1e-6)


def test_repeated_pairs_reach_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = analyzer()
    seen: list[tuple[str, str]] = []
    logits = model.packed.logits
    monkeypatch.setattr(model.packed, "logits", lambda pairs: seen.extend(pairs) or logits(pairs))
    model.consistency([FIRST] * 6, [SECOND, SECOND, THIRD, SECOND, FIRST, FIRST])
    assert len(seen) == len(set(seen)) == 5


def test_blank_texts_are_neutral() -> None:
    probs = analyzer().predict(["", FIRST, " \n"], [FIRST, "", ""])
    assert torch.equal(probs, torch.tensor([[0.0, 1.0, 0.0]] * 3))
    assert analyzer().predict([], []).shape == (0, 3)


def test_sentence_split_is_the_mean_over_hypothesis_sentences() -> None:
    model = analyzer(split="sentence")
    premise, hypothesis = f"{FIRST} {THIRD}", f"{SECOND} {FIRST} {THIRD}"
    expected = torch.stack([direct(model, premise, s) for s in (SECOND, FIRST, THIRD)]).mean(0)
    assert torch.allclose(model.predict([premise], [hypothesis])[0], expected, atol=1e-6)
    whole = direct(model, premise, hypothesis)
    assert torch.allclose(model.predict([premise], [hypothesis], split="auto")[0], whole, atol=1e-6)


def test_long_pairs_take_max_over_chunks_and_mean_over_sentences_in_both_directions() -> None:
    # Room for 17 tokens, sentences of 7 and 8: a chunk beside a sentence holds one sentence.
    model = analyzer(limit=20)
    source, rewrite = f"{FIRST} {SECOND} {THIRD}", f"{THIRD} {SECOND} {FIRST}"

    def by_hand(premise: list[str], hypothesis: list[str]) -> float:
        best = [max(float(direct(model, p, h)[0]) for p in premise) for h in hypothesis]
        return sum(best) / len(best)

    result = model.consistency([source], [rewrite])
    fwd = by_hand([THIRD, SECOND, FIRST], [FIRST, SECOND, THIRD])
    bwd = by_hand([FIRST, SECOND, THIRD], [THIRD, SECOND, FIRST])
    assert float(result.fwd) == pytest.approx(fwd, abs=1e-6)
    assert float(result.bwd) == pytest.approx(bwd, abs=1e-6)
    assert float(result.mean) == pytest.approx((2 * fwd + bwd) / 3, abs=1e-6)


def test_short_pairs_are_not_cut_in_auto() -> None:
    model = analyzer(limit=64)
    text = f"{FIRST} {SECOND}"
    assert torch.allclose(model.predict([text], [THIRD])[0], direct(model, text, THIRD), atol=1e-6)


def test_a_sentence_longer_than_the_limit_is_scored_in_pieces_that_hold_every_word() -> None:
    model = analyzer(limit=16)
    long = " ".join(["rice Oslo a b"] * 20)
    # Room for 13 tokens: 6 for the hypothesis, which leaves the 7 tokens of FIRST in one chunk.
    pieces = [" ".join(("rice Oslo a b".split() * 20)[i : i + 6]) for i in range(0, 80, 6)]
    expected = torch.stack([direct(model, FIRST, piece) for piece in pieces]).mean(0)
    assert torch.allclose(model.predict([FIRST], [long])[0], expected, atol=1e-6)


def test_direction_swaps_fwd_and_bwd() -> None:
    standard = analyzer().consistency([FIRST, SECOND], [SECOND, THIRD])
    swapped = analyzer(direction="source_entails_rewrite").consistency(
        [FIRST, SECOND], [SECOND, THIRD]
    )
    assert torch.equal(standard.fwd, swapped.bwd) and torch.equal(standard.bwd, swapped.fwd)
    assert torch.allclose(swapped.mean, (2 * standard.bwd + standard.fwd) / 3)
    model = analyzer()
    assert float(standard.fwd[0]) == pytest.approx(float(direct(model, SECOND, FIRST)[0]), abs=1e-6)


def test_token_features_by_hand() -> None:
    # Usual neighbours: start 5, 5 9, 9 end, start 9; the edge is token 3, the vocabulary has 10.
    usual = torch.tensor(sorted([3 * 10 + 5, 5 * 10 + 9, 9 * 10 + 3, 3 * 10 + 9]))
    features = TokenFeatures(usual, vocab=10, edge=3)
    #                    CLS 5  9 SEP 9  7 SEP PAD
    ids = torch.tensor([[2, 5, 9, 3, 9, 7, 3, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0]])
    special = torch.tensor([[1, 0, 0, 1, 0, 0, 1, 1]])
    # 9 stands in both texts (+ 2); 7 after 9, and an end after 7, are unusual (+ 4).
    assert features(ids, segments, special).tolist() == [[0, 0, 2, 0, 3, 5, 5, 0]]


def test_usual_neighbours_leave_out_what_chance_joined() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["Amara led the meeting"] * 400 + ["meeting Amara the led"] * 3
    features = TokenFeatures.fit(tokenizer, texts)
    one, other = "Amara led the meeting", "meeting Amara the led"
    model = FactAnalyzer(tiny_model(types=8), tokenizer, features=features)
    types = model.encode([(one, other)])["token_type_ids"][0]
    # CLS, 4 fluent words of the other text, SEP, 4 words in an order seen too rarely, SEP.
    assert types.tolist() == [0, 2, 2, 2, 2, 0, 7, 7, 7, 7, 5]


def test_wrong_lengths_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="2 premises for 1 hypotheses"):
        analyzer().predict([FIRST, SECOND], [FIRST])
    with pytest.raises(ValueError, match="split"):
        AnalyzerSettings(split="words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens"):
        AnalyzerSettings(max_tokens=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Abbott gives 3.5 mg. Then rest.", ["Dr. Abbott gives 3.5 mg.", "Then rest."]),
        ("J. Smith left. I did too.", ["J. Smith left.", "I did too."]),
        ("1. First point. 2. Second point.", ["1. First point.", "2. Second point."]),
        ("A line\nanother line", ["A line", "another line"]),
        ("Wait... ! What?", ["Wait... !", "What?"]),
        ("...", ["..."]),
        ("  ", []),
        ('He said "go." Then left.', ['He said "go."', "Then left."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="ab.!? \n1\u00e9\u3002", max_size=80),
    budget=st.integers(min_value=1, max_value=9),
)
def test_cutting_keeps_every_character_and_the_budget(text: str, budget: int) -> None:
    def solid(pieces: list[str]) -> str:
        return "".join("".join(pieces).split())

    for pieces in (fit_pieces(text, budget, len), premise_chunks(text, budget, len)):
        assert solid(pieces) == "".join(text.split())
        assert all(0 < len(piece) <= budget for piece in pieces)
    assert solid(split_sentences(text)) == "".join(text.split())


def test_special_tokens_in_a_text_are_only_text() -> None:
    inputs = analyzer().encode([("the [SEP] train [PAD]", "Oslo [SEP]")])
    assert (inputs["input_ids"][0] == 3).sum() == 2
    assert (inputs["input_ids"][0] == 0).sum() == 0
