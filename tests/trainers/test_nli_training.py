"""NLI training: learns, resumes, refuses; labels of pretrained folders are kept."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from visa_core.config import NLIConfig
from visa_core.data import embedded
from visa_core.data.embedded import truth
from visa_core.data.schema import DataError, write_jsonl
from visa_core.models.exact_match import FILE
from visa_core.models.fact_analyzer import AnalyzerSettings, FactAnalyzer
from visa_core.models.nli_base import base_analyzer, pair_tokenizer
from visa_core.rewards import semantic_term
from visa_core.training.run import Run
from visa_core.types import NLIPair
from visa_trainers import nli

WORDS = ["Oslo", "Lisbon", "Vienna", "Prague", "Dublin", "Athens", "Warsaw", "Turin"]


def pairs() -> list[NLIPair]:
    """Two towns; the same one is entailed, another one contradicts, no town is neutral."""
    rows = []
    for i, town in enumerate(WORDS * 8):
        other = WORDS[(i + 1 + i // 8) % len(WORDS)]
        label = ("entailment", "contradiction", "neutral")[i % 3]
        hypothesis = {
            "entailment": f"{town} is where it goes.",
            "contradiction": f"{other if other != town else 'Rome'} is where it goes.",
            "neutral": "it goes.",
        }[label]
        rows.append(
            NLIPair(premise=f"The train goes to {town}.", hypothesis=hypothesis, label=label)
        )
    return rows


@pytest.fixture
def config(tmp_path: Path) -> NLIConfig:
    write_jsonl(tmp_path / "pairs.jsonl", pairs())
    return NLIConfig(
        data=(f"jsonl:{tmp_path / 'pairs.jsonl'}",),
        out=tmp_path / "nli",
        hidden_size=32,
        layers=1,
        max_length=48,
        batch_size=16,
        epochs=20,
        held_out=6,
        device="cpu",
    )


def test_training_learns_and_the_folder_loads(config: NLIConfig) -> None:
    out = nli.train(replace(config, epochs=60))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.1 < rows[0]["loss"] and rows[-1]["accuracy"] == 1.0
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["n"] == 6 and figures["accuracy"] >= 5 / 6
    analyzer = FactAnalyzer.from_pretrained(out)
    assert analyzer.settings.split == "sentence" and analyzer.features is not None
    known = analyzer.predict(
        ["The train goes to Oslo."] * 2, ["Oslo is where it goes.", "Turin is where it goes."]
    )
    assert known[0, 0] > 0.9 and known[1, 2] > 0.9
    assert (out / FILE).is_file() and not (out / "checkpoints").exists()


def test_stopped_and_resumed_training_is_bit_identical(
    config: NLIConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, epochs=3, save_every=4)
    nli.train(config)
    stopped = replace(config, out=tmp_path / "stopped")
    log = Run.log

    def die_at_six(self: Run, step: int, metrics: dict[str, float]) -> None:
        if step == 6:
            raise RuntimeError("killed")
        log(self, step, metrics)

    monkeypatch.setattr(Run, "log", die_at_six)
    with pytest.raises(RuntimeError, match="killed"):
        nli.train(stopped)
    monkeypatch.setattr(Run, "log", log)
    nli.train(replace(stopped, resume=True))

    def losses(folder: Path) -> list[float]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert losses(config.out) == losses(stopped.out)
    whole, resumed = (FactAnalyzer.from_pretrained(c.out).model for c in (config, stopped))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_embedded_pairs_reach_the_trainer(tmp_path: Path) -> None:
    out = nli.train(
        NLIConfig(
            data=("embedded:96,3",),
            out=tmp_path / "nli",
            hidden_size=16,
            layers=1,
            epochs=1,
            device="cpu",
        )  # fmt: skip
    )
    assert json.loads((out / "evaluation.json").read_text())["n"] == 9


def tiny_folder(path: Path, labels: dict[int, str] | None) -> Path:
    torch.manual_seed(0)
    tokenizer = pair_tokenizer([p.premise for p in pairs()], 48)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=48,
    )  # fmt: skip
    if labels is None:
        BertModel(config).save_pretrained(path)
    else:
        config.id2label, config.label2id = labels, {v: k for k, v in labels.items()}
        BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_pretrained_classifier_keeps_its_label_order(config: NLIConfig, tmp_path: Path) -> None:
    labels = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    folder = tiny_folder(tmp_path / "bert", labels)
    out = nli.train(replace(config, backbone=str(folder), epochs=1))
    assert FactAnalyzer.from_pretrained(out).order == (1, 2, 0)
    analyzer = base_analyzer(replace(config, backbone=str(folder)), AnalyzerSettings(), [])
    assert nli.label_outputs(analyzer, pairs()[:3]).tolist() == [1, 0, 2]


def test_an_encoder_gets_a_new_head(config: NLIConfig, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "encoder", None)
    out = nli.train(replace(config, backbone=str(folder), epochs=1))
    assert FactAnalyzer.from_pretrained(out).order == (0, 1, 2)


def test_a_two_label_head_learns_contradiction_as_not_entailed(
    config: NLIConfig, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "two", {0: "not_entailment", 1: "entailment"})
    analyzer = base_analyzer(replace(config, backbone=str(folder)), AnalyzerSettings(), [])
    assert nli.label_outputs(analyzer, pairs()[:3]).tolist() == [1, 0, 0]


def test_long_pairs_are_left_out_with_a_count(
    config: NLIConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = NLIPair(premise="Oslo " * 90, hypothesis="Oslo.", label="entailment")
    write_jsonl(tmp_path / "pairs.jsonl", [*pairs(), long, long])
    with caplog.at_level(logging.WARNING):
        nli.train(replace(config, epochs=1, held_out=0))
    assert "2 of 66 pairs are longer than 48 tokens" in caplog.text


def test_dirty_labels_are_set_aside_and_other_data_refused(
    config: NLIConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"premise": "a", "hypothesis": "b", "label": "maybe"}\n' + path.read_text())
    with caplog.at_level(logging.WARNING):
        nli.train(replace(config, epochs=1))
    assert "pairs.jsonl:1" in caplog.text and "maybe" in caplog.text
    with pytest.raises(DataError, match="holds no entailment pairs"):
        nli.train(replace(config, data=("hh:x.jsonl",)))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": -1.0}, {"warmup": 1.0}, {"data": ()}, {"held_out": -1}]
)
def test_senseless_settings_are_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--"):
        NLIConfig(out=tmp_path, **wrong)


def test_embedded_labels_are_balanced() -> None:
    labels = [pair.label for pair in embedded.nli_pairs(600, 5)]
    for label in ("entailment", "neutral", "contradiction"):
        assert 0.15 < labels.count(label) / 600 < 0.6


@pytest.mark.slow
def test_trained_scores_agree_with_the_truth_and_vacuous_text_earns_nothing(tmp_path: Path) -> None:
    config = NLIConfig(data=("embedded:5000",), out=tmp_path / "nli", epochs=3, device="cpu")
    out = nli.train(config)
    assert json.loads((out / "evaluation.json").read_text())["accuracy"] >= 0.93
    analyzer = FactAnalyzer.from_pretrained(out)
    tasks = embedded.rewrites(100, 77, embedded.ReferenceNoise())
    sources, rewrites = [t.response for t in tasks], [t.reference for t in tasks]
    found = analyzer.consistency(sources, rewrites)
    known = [truth.score(s, r, torch.zeros(10)) for s, r in zip(sources, rewrites, strict=True)]
    for key in ("fwd", "bwd"):
        exact = torch.tensor([row[key] for row in known])
        assert float((getattr(found, key) - exact).abs().mean()) < 0.06
    vacuous = analyzer.consistency(sources, ["above all keep everyone safe."] * 100)
    assert float(semantic_term(vacuous, "geometric").mean()) < 0.05
    copied = analyzer.consistency(sources, sources)
    assert float(semantic_term(copied, "geometric").mean()) > 0.95
