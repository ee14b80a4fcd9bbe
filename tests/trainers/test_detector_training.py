"""Training of detector and translator: it learns, it resumes exactly, it takes real rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from visa_core.config import DetectorConfig, TranslatorConfig, with_recipe
from visa_core.data.schema import write_jsonl
from visa_core.data.sources import load_labelled
from visa_core.models.detector import Detector
from visa_core.models.translator import Translator
from visa_core.models.word_tokenizer import build_word_tokenizer
from visa_core.training.run import Run
from visa_core.training.supervised import LengthPlan, Updater
from visa_core.types import Dialogue, RewriteExample
from visa_core.values import SCHWARTZ
from visa_trainers import detector, translator

WORDS = {"security": "safe", "power": "mighty", "tradition": "pious"}
SMALL = {"backbone": "builtin", "hidden_size": 64, "lr": 5e-3, "batch_size": 8}


def small_dialogues(n: int = 192) -> list[Dialogue]:
    """Texts in which each value has one word, promoted or, after "not", opposed."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        name = list(WORDS)[i % 3]
        sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
        filler = " so it goes" * int(torch.randint(0, 4, (), generator=generator))
        response = f"be {'not ' if sign < 0 else ''}{WORDS[name]}{filler}"
        rows.append(Dialogue(query=f"what {i % 5}?", response=response, values={name: sign}))
    return rows


@pytest.fixture(scope="module")
def dialogues_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    write_jsonl(path, small_dialogues())
    return path


@pytest.fixture(scope="module")
def tiny_backbone(tmp_path_factory) -> Path:
    """A folder like one from a model hub: tiny, random, with a tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(["the safe free just law of people"] * 2)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_detector_learns_what_the_words_say(dialogues_file, tmp_path):
    config = DetectorConfig(
        data=(f"jsonl:{dialogues_file}",), out=tmp_path / "d", epochs=12, **SMALL
    )
    model = Detector.from_pretrained(detector.train(config))
    predicted = model.predict(["what 7?"] * 3, ["be safe so it goes", "be not mighty", "be pious"])
    expected = torch.stack(
        [SCHWARTZ.vector(v) for v in ({"security": 1}, {"power": -1}, {"tradition": 1})]
    )
    assert (predicted - expected).abs().max() < 0.4
    losses = [json.loads(line)["loss"] for line in (tmp_path / "d" / "metrics.jsonl").open()]
    assert len(losses) == 12 * 24 and losses[-1] < 0.1 * losses[0]
    assert not (tmp_path / "d" / "checkpoints").exists()


def test_the_translator_learns_how_far_an_instruction_goes(tmp_path):
    phrases = {"more": 1.0, "far more": 2.0, "less": -1.0}
    examples = [
        RewriteExample(
            query=f"what {i}?",
            response="it goes",
            instruction=f"make it {phrase} {word}",
            shift={name: size},
        )
        for i in range(12)
        for name, word in WORDS.items()
        for phrase, size in phrases.items()
    ]
    write_jsonl(tmp_path / "e.jsonl", examples)
    config = TranslatorConfig(
        data=(f"jsonl:{tmp_path / 'e.jsonl'}",), out=tmp_path / "t", epochs=12, **SMALL
    )
    model = Translator.from_pretrained(translator.train(config))
    predicted = model.predict(
        ["make it far more pious", "make it less safe"], ["what 3?"] * 2, ["it goes"] * 2
    )
    expected = torch.stack([SCHWARTZ.vector(v, 2) for v in ({"tradition": 2}, {"security": -1})])
    assert (predicted - expected).abs().max() < 0.5


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_an_interrupted_run_continues_exactly(
    dialogues_file, tiny_backbone, tmp_path, average, monkeypatch
):
    base = DetectorConfig(
        data=(f"jsonl:{dialogues_file}",),
        out=tmp_path / "whole",
        backbone=str(tiny_backbone),
        epochs=1,
        batch_size=16,
        save_every=3,
        average=average,
    )
    detector.train(base)
    broken = replace(base, out=tmp_path / "broken")
    log = Run.log

    def log_until_the_power_fails(self, step, metrics):
        if step == 8:
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(Run, "log", log_until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        detector.train(broken)
    monkeypatch.setattr(Run, "log", log)
    detector.train(replace(broken, resume=True))
    whole, resumed = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("whole", "broken")
    )
    assert [(row["step"], row["loss"]) for row in resumed] == [
        (row["step"], row["loss"]) for row in whole
    ]
    texts = ["be safe", "be not pious at all"]
    first, second = (Detector.from_pretrained(tmp_path / name) for name in ("whole", "broken"))
    assert torch.equal(first.predict(texts, texts), second.predict(texts, texts))


def test_real_rows_of_both_kinds_train_two_heads_on_any_folder(
    shared_data, tiny_backbone, tmp_path, caplog
):
    folder = shared_data / "valueeval23"
    fulcra = tmp_path / "fulcra.jsonl"
    lines = (shared_data / "fulcra" / "train.jsonl").read_text(encoding="utf-8").splitlines(True)
    fulcra.write_text("".join(lines[40:80]), encoding="utf-8")
    tables = []
    for kind in ("arguments", "labels"):
        rows = (folder / f"{kind}-training.tsv").read_text(encoding="utf-8").split("\n")[:61]
        tables.append(tmp_path / f"{kind}.tsv")
        tables[-1].write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = DetectorConfig(
        data=(f"fulcra:{fulcra}", f"valueeval23:{tables[0]},{tables[1]}"),
        out=tmp_path / "d",
        backbone=str(tiny_backbone),
        epochs=1,
        max_length=48,
        threshold_share=0.2,
    )
    with pytest.warns(UserWarning, match="were cut"):
        model = Detector.from_pretrained(detector.train(config))
    assert "set aside 1 of 40 records" in caplog.text and "fulcra.jsonl:29" in caplog.text
    assert model.predict(["q"], ["r"]).shape == (1, 10)
    assert model.predict_categories(["q"], ["r"]).shape == (1, 20)
    assert model.config.vector_trained and 0.05 <= model.config.category_threshold <= 0.6
    logged = [json.loads(line) for line in (tmp_path / "d" / "metrics.jsonl").open()]
    assert any("mse" in row for row in logged) and any("bce" in row for row in logged)


def test_held_out_rows_share_no_conclusion_with_training(shared_data):
    folder = shared_data / "valueeval23"
    spec = f"valueeval23:{folder}/arguments-training.tsv,{folder}/labels-training.tsv"
    config = DetectorConfig(data=(spec,), out=Path("unused"), threshold_share=0.1)
    rows = load_labelled(config.data)
    training, held = detector.hold_out(rows, config)
    assert len(training) + len(held) == len(rows) == 5393
    assert not {row.group for row in training} & {row.group for row in held}
    assert 0.1 <= len(held) / len(rows) < 0.2
    assert detector.hold_out(rows, replace(config, threshold_share=0.0))[1] == []


def test_each_row_trains_only_the_head_of_its_label():
    labels = detector.Labels(
        values=torch.zeros(2, 10),
        has_values=torch.tensor([True, False]),
        categories=torch.ones(2, 20),
        has_categories=torch.tensor([False, True]),
    )
    scores = torch.ones(2, 10, requires_grad=True)
    logits = torch.zeros(2, 20, requires_grad=True)
    loss, metrics = detector.detector_loss(scores, logits, labels)
    loss.backward()
    # mean over the two rows of 1^2 and ln 2
    assert loss.item() == pytest.approx((1 + 0.693147) / 2, abs=1e-5)
    assert float(metrics["mse"]) == 1 and float(metrics["bce"]) == pytest.approx(0.693147, abs=1e-5)
    assert scores.grad[1].abs().sum() == 0 and logits.grad[0].abs().sum() == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_category_head_starts_from_shares_and_definitions(tiny_backbone):
    model = Detector.create(str(tiny_backbone), pooling="mean", category_head=True)
    categories = torch.zeros(98, 20)
    categories[:49, 0] = 1
    labels = detector.Labels(
        values=torch.zeros(98, 10),
        has_values=torch.zeros(98, dtype=torch.bool),
        categories=categories,
        has_categories=torch.ones(98, dtype=torch.bool),
    )
    detector.start_category_head(model, labels)
    head = model.category_head.score
    # (49 + 1) / (98 + 2) is one half; the others have (0 + 1) / (98 + 2)
    assert head.bias[0].item() == pytest.approx(0, abs=1e-6)
    assert head.bias[1:].tolist() == pytest.approx([-4.59512] * 19, abs=1e-4)
    assert head.weight.norm(dim=1).tolist() == pytest.approx([0.5] * 20, abs=1e-5)


def test_every_row_is_seen_once_an_epoch_in_batches_of_similar_length():
    lengths = torch.randint(5, 200, (1000,)).tolist()
    plan = LengthPlan(lengths, batch_size=16, epochs=2, seed=3)
    assert plan.total_steps == 2 * 63
    first, second = ([plan.rows(epoch * 63 + i) for i in range(63)] for epoch in range(2))
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == list(range(1000))
    assert first != second
    assert plan.rows(5) == first[5], "going back gives the same batch"
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in first)
    assert padded < 1.1 * sum(lengths)


def test_learning_rate_warms_up_and_decays_as_a_function_of_the_step():
    updater = Updater(torch.nn.Linear(2, 2), total_steps=100, lr=1.0, warmup=0.1)
    factors = [updater.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0)
    assert factors.index(max(factors)) in (9, 10)
    assert factors[55] == pytest.approx(0.5) and 0 <= factors[99] < 1e-3


def test_a_loss_that_is_not_finite_never_reaches_the_weights():
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    updater = Updater(model, total_steps=2, lr=1.0)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        updater.update(model(torch.ones(1, 2)).sum() * float("nan"), step=1)
    assert torch.equal(model.weight, before)


def test_recipes_fill_what_is_not_given():
    scratch = with_recipe(
        DetectorConfig(data=("embedded",), out=Path("o"), backbone="builtin", lr=1.0)
    )
    pretrained = with_recipe(DetectorConfig(data=("embedded",), out=Path("o")))
    assert scratch.lr == 1.0 and scratch.pooling == "attention"
    assert pretrained.lr is not None and pretrained.lr < 1e-3
    assert None not in (vars(scratch)["epochs"], vars(pretrained)["epochs"])


@pytest.mark.parametrize(
    "field, value",
    [
        ("epochs", 0),
        ("lr", -1.0),
        ("average", 1.0),
        ("threshold_share", 1.5),
        ("query_dropout", -0.1),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')}"):
        DetectorConfig(data=("embedded",), out=Path("o"), **{field: value})


def test_data_without_values_is_refused(tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [Dialogue(query="q", response="r")])
    config = DetectorConfig(data=(f"jsonl:{tmp_path / 'd.jsonl'}",), out=tmp_path / "d", **SMALL)
    with pytest.raises(ValueError, match="none of its 1 records has values to learn"):
        detector.train(config)
