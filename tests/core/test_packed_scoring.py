"""Packed scoring against Hugging Face calls on one text at a time: encoders, heads, token types."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from visa_core.models.classifier_heads import HEADS
from visa_core.models.detector import Detector
from visa_core.models.encoder import TextEncoder
from visa_core.models.exact_match import TokenFeatures
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.packed_encoder import PackedEncoder
from visa_core.models.packed_rows import PackedRows, token_batches
from visa_core.models.prepacked_linear import PrepackedLinear, why_no_onednn
from visa_core.models.token_memo import PairTokenizer, memo_of

TEXTS = [
    "Mara took the early train to Oslo, and paid 40 kroner.",
    "She paid.",
    "In winter the harbour freezes; nobody sails, not even the old ferry of the island.",
    "Nobody sails in winter.",
    "x",
]
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 90,
    "initializer_range": 0.15,
}
SMALL = {key: value for key, value in SHAPE.items() if key != "initializer_range"}
IDS = {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0,
       "eos_token_id": 2}  # fmt: skip
MODERN = {"local_attention": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": SHAPE,
    "Roberta": SHAPE,
    "XLMRoberta": SHAPE,
    "Camembert": SHAPE,
    "Electra": SHAPE | {"embedding_size": 32},
    "ModernBert": SHAPE | MODERN | {"num_hidden_layers": 4},
    "DistilBert": {"vocab_size": 300, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96,
                   "max_position_embeddings": 90, "initializer_range": 0.15},
    "Albert": SHAPE | {"embedding_size": 32},
}  # fmt: skip
REFUSED = {
    "DebertaV2": SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "Deberta": SMALL,
    "MPNet": SMALL,
}


def build(name: str, kind: str = "Model", **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **ENCODERS.get(name, REFUSED.get(name)) | IDS | more
    )
    return getattr(transformers, name + kind)(config).eval()


def random_rows(*lengths: int) -> list[list[int]]:
    return [torch.randint(5, 300, (length,)).tolist() for length in lengths]


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_hidden_states_equal_those_of_each_text_alone(name: str) -> None:
    model = build(name)
    encoder = PackedEncoder(model)
    assert encoder.why_not is None
    rows = random_rows(3, 41, 1, 17, 80)
    alone = [model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    packed = PackedRows.of(rows, first_position=encoder.first_position)
    hidden = encoder.hidden(packed)
    torch.testing.assert_close(hidden, torch.cat(alone), rtol=1e-4, atol=2e-5)
    firsts = encoder.first(packed)
    torch.testing.assert_close(firsts, hidden[packed.first_B], rtol=1e-5, atol=5e-6)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", REFUSED)
def test_other_attention_is_refused_and_logged_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = PackedEncoder(build(name))
    with caplog.at_level(logging.WARNING):
        assert encoder.why_not is not None
        assert encoder.why_not is not None
    assert len([r for r in caplog.records if "reads padded batches" in r.message]) == 1


def test_an_encoder_that_mixes_rows_is_found_out_by_the_trial() -> None:
    """Attention of its own, which the registered function never sees."""
    model = build("DistilBert")
    layer = model.transformer.layer[0]
    layer.register_forward_hook(lambda module, inputs, out: out + out.mean(1, keepdim=True))
    assert "other hidden states" in (PackedEncoder(model).why_not or "")


def test_weights_that_changed_are_read_anew() -> None:
    model = build("Bert")
    encoder = PackedEncoder(model)
    packed = PackedRows.of(random_rows(9, 4))
    before = encoder.hidden(packed)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight.mul_(2.0)
    after = encoder.hidden(packed)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, PackedEncoder(model).hidden(packed))
    torch.testing.assert_close(copy.deepcopy(encoder).hidden(packed), after)


def byte_tokenizer(post: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = post
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", pad_token="<pad>", model_max_length=90,
    )


def pair_posts() -> dict[str, Any]:
    special = [("<s>", 0), ("</s>", 2)]
    template = processors.TemplateProcessing
    return {
        "roberta": processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
        "bert": template(single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1",
                         special_tokens=special),
        "bare": template(single="$A", pair="$A $B:1", special_tokens=[]),
        "swapped": template(single="<s> $A </s>", pair="<s> $B </s> $A </s>",
                            special_tokens=special),
    }  # fmt: skip


PAIRS = [(a, b) for a in TEXTS for b in TEXTS] + [("</s> <s>", "a </s> b")]


@pytest.mark.parametrize("name", pair_posts())
def test_pairs_have_the_tokens_of_the_tokenizers_own_call(name: str) -> None:
    tokenizer = byte_tokenizer(pair_posts()[name])
    pairs = PairTokenizer(tokenizer, with_types=True)
    assert (pairs.template is None) == (name == "swapped")
    rows = pairs.rows(PAIRS)
    for (a, b), ids, types in zip(PAIRS, rows.ids, rows.types, strict=True):
        own = tokenizer(a, b, split_special_tokens=True, return_token_type_ids=True)
        assert (ids, types) == (own["input_ids"], own["token_type_ids"])


def test_each_text_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer(pair_posts()["roberta"])
    analyzer = FactAnalyzer(classifier("Roberta"), tokenizer)
    analyzer.predict(["warm"], ["up"])
    seen: list[str] = []
    kind = type(tokenizer)
    call = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, text, *rest, **k: seen.extend(text)
        or call(self, text, *rest, **k),
    )
    analyzer.packed.tokenizer._seen = True  # its comparison on three pairs is done
    analyzer.consistency(TEXTS[:2] * 4, TEXTS[2:4] * 4)
    analyzer.consistency(TEXTS[:2], TEXTS[2:4])
    assert sorted(seen) == sorted(TEXTS[:4])
    assert memo_of(byte_tokenizer(pair_posts()["roberta"])) is analyzer._memo


def classifier(name: str, **more: Any) -> PreTrainedModel:
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    ids = {label: index for index, label in labels.items()}
    return build(name, "ForSequenceClassification", id2label=labels, label2id=ids, **more)


CLASSIFIERS = [(head.removesuffix("ForSequenceClassification"), {}) for head in HEADS] + [
    ("ModernBert", {"classifier_pooling": "mean"}),
    ("Albert", {}),
    ("DebertaV2", {}),
]


@pytest.mark.parametrize("name,more", CLASSIFIERS, ids=str)
@torch.inference_mode()
def test_probabilities_equal_those_of_each_pair_alone(name: str, more: dict[str, Any]) -> None:
    """Albert's head is not known and DeBERTa's attention is its own: both go on padded."""
    tokenizer = byte_tokenizer(pair_posts()["roberta"])
    model = classifier(name, **more)
    analyzer = FactAnalyzer(model, tokenizer)
    assert (analyzer.packed.why_not is None) == (name not in ("Albert", "DebertaV2"))
    got = analyzer.predict([a for a, _ in PAIRS], [b for _, b in PAIRS])
    for (a, b), row in zip(PAIRS, got, strict=True):
        inputs = tokenizer(a, b, return_tensors="pt", split_special_tokens=True)
        want = model(**{k: v for k, v in inputs.items() if k != "token_type_ids"}).logits
        torch.testing.assert_close(row, want.softmax(-1)[0], rtol=1e-4, atol=1e-5)


def test_packed_and_padded_batches_of_many_lengths_agree() -> None:
    analyzer = FactAnalyzer(classifier("Bert"), byte_tokenizer(pair_posts()["bert"]))
    words = " ".join(TEXTS).split()
    pieces = [(" ".join(words[: n % 13 + 1]), " ".join(words[n % 7 : n % 17 + 8])) for n in
              range(150)]  # fmt: skip
    padded = torch.stack(analyzer._score_padded(pieces, 8))
    packed = torch.stack(analyzer._score(pieces, 8))
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    assert torch.equal(packed.argmax(1), padded.argmax(1))


def test_token_features_of_packed_rows() -> None:
    tokenizer = byte_tokenizer(pair_posts()["bert"])
    features = TokenFeatures.fit(tokenizer, TEXTS * 2)
    rows = PairTokenizer(tokenizer, with_types=True).rows(PAIRS)
    packed = PackedRows.of(rows.ids, rows.types)
    special = torch.tensor([mark for row in rows.special for mark in row])
    got = features.packed(packed.ids_N, packed.types_N, special, packed.row_N)
    alone = [
        features(*(torch.tensor([part]) for part in row))[0]
        for row in zip(rows.ids, rows.types, rows.special, strict=True)
    ]
    assert torch.equal(got, torch.cat(alone))


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("backbone", ["builtin", "Bert"])
@torch.inference_mode()
def test_a_detector_packed_and_padded(pooling: str, backbone: str) -> None:
    torch.manual_seed(0)
    detector = Detector.create("builtin", texts=TEXTS, pooling=pooling, category_head=True)
    if backbone == "Bert":
        tokenizer = byte_tokenizer(pair_posts()["bert"])
        detector.encoder = TextEncoder(build("Bert"), tokenizer, 64)
        for head in ("vector_head", "category_head"):
            old = getattr(detector, head)
            torch.manual_seed(1)
            setattr(detector, head, type(old)(64, old.score.out_features, pooling))
    for head in (detector.vector_head, detector.category_head):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    detector.eval()
    assert detector.encoder.packed.why_not is None
    rows = detector.tokenize([a for a, _ in PAIRS], [b for _, b in PAIRS])
    values, logits = detector(rows)
    got, categories = detector._predict_rows(rows, 4)
    torch.testing.assert_close(got, values.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(categories, logits.sigmoid(), rtol=1e-4, atol=1e-5)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = torch.randint(1, 400, (500,)).tolist()
    batches = token_batches(lengths, torch.device("cpu"), 384)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert max(sum(lengths[i] for i in batch) for batch in batches) <= 2**19 // 384
    assert token_batches([], torch.device("cpu"), 384) == []


@pytest.mark.parametrize("gelu", [False, True])
def test_prepacked_linear_against_float64(gelu: bool) -> None:
    torch.manual_seed(0)
    x, w, b, r = (torch.randn(*shape) for shape in ((37, 48), (80, 48), (80,), (37, 80)))
    layer = PrepackedLinear(w, b, gelu=gelu)
    assert layer.onednn == (why_no_onednn(torch.float32) is None)
    want = x.double() @ w.double().T + b
    if gelu:
        want = torch.nn.functional.gelu(want)
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)
    plain = PrepackedLinear(w, b).add_to(x, r)
    torch.testing.assert_close(
        plain.double(), x.double() @ w.double().T + b + r, rtol=1e-5, atol=1e-5
    )
