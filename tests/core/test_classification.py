"""The ValueEval'23 measure and the vector measures against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from visa_core.data.schema import write_jsonl
from visa_core.data.valueeval import ARGUMENT_COLUMNS, LABEL_COLUMNS, read_valueeval23
from visa_core.evaluation.classification import (
    best_threshold,
    evaluate_detector,
    macro_f1,
    per_category_f1,
    sign_accuracy,
)
from visa_core.models.detector import Detector
from visa_core.types import Dialogue
from visa_core.values import SCHWARTZ, VALUEEVAL20

TRUTH = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 0]]).bool()
GUESS = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]).bool()
# by hand: category 0 has precision and recall 1/2, category 1 has 2/3 and 1, category 2 nothing


def test_macro_f1_is_the_f1_of_macro_precision_and_macro_recall():
    precision, recall = (1 / 2 + 2 / 3 + 0) / 3, (1 / 2 + 1 + 0) / 3
    assert macro_f1(GUESS, TRUTH) == pytest.approx(2 * precision * recall / (precision + recall))


def test_macro_f1_is_made_of_scikit_learns_precision_and_recall():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    for rate in (0.02, 0.1, 0.5):
        truth, guess = (torch.rand(200, 20, generator=generator) < rate for _ in range(2))
        precision, recall = (
            measure(truth.numpy(), guess.numpy(), average="macro", zero_division=0)
            for measure in (metrics.precision_score, metrics.recall_score)
        )
        wanted = 2 * precision * recall / (precision + recall)
        assert macro_f1(guess, truth) == pytest.approx(wanted, rel=1e-9)
        each = metrics.f1_score(truth.numpy(), guess.numpy(), average=None, zero_division=0)
        assert per_category_f1(guess, truth).tolist() == pytest.approx(each.tolist(), abs=1e-9)


def test_per_category_f1_by_hand():
    assert per_category_f1(GUESS, TRUTH).tolist() == pytest.approx([1 / 2, 4 / 5, 0])


def test_perfect_and_empty_predictions():
    assert macro_f1(TRUTH, TRUTH) == 1
    assert macro_f1(torch.zeros_like(TRUTH), TRUTH) == 0


@pytest.mark.parametrize("split, expected", [("validation", 0.287)])
def test_all_ones_on_the_real_validation_file(shared_data, split, expected):
    folder = shared_data / "valueeval23"
    table = read_valueeval23(folder / f"arguments-{split}.tsv", folder / f"labels-{split}.tsv")
    truth = torch.tensor([argument.categories for argument in table]).bool()
    share = truth.double().mean().item()
    measured = macro_f1(torch.ones_like(truth), truth)
    # every recall is 1 and every precision is the category's share
    assert measured == pytest.approx(2 * share / (1 + share))
    assert measured == pytest.approx(expected, abs=5e-4)


def test_sign_accuracy_counts_labelled_entries_alone():
    truth = torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 1.0]])
    guess = torch.tensor([[0.1, 0.2, -1.0], [1.0, 1.0, 0.9]])
    assert sign_accuracy(guess, truth) == pytest.approx(2 / 3)
    assert math.isnan(sign_accuracy(guess, torch.zeros(2, 3)))


def test_best_threshold_lies_in_the_middle_of_the_good_range():
    truth = torch.rand(400, 4) < 0.3
    probabilities = torch.where(truth, 0.4, 0.2) + 0.02 * torch.rand(400, 4)
    assert 0.23 <= best_threshold(probabilities, truth) <= 0.39


class Oracle(Detector):
    """Answers what it is told to, so that the measures around it can be checked."""

    def predict(self, queries, responses, batch_size=64):
        return torch.stack([SCHWARTZ.vector(json.loads(text)) for text in responses])

    def predict_categories(self, queries, responses, batch_size=64):
        return torch.tensor([[float(c) for c in text] for text in queries]) * 0.3


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    words = {"texts": ["a"], "hidden_size": 16, "layers": 1}
    return Oracle.create("builtin", category_head=True, **words)


def test_evaluation_of_vectors(oracle, tmp_path):
    rows = [
        Dialogue(query="q", response='{"power": 1}', values={"power": 0.5}),
        Dialogue(query="q", response='{"power": 1}', values={"power": -1}),
        Dialogue(query="q", response="{}", values={}),
        Dialogue(query="q", response="{}"),
    ]
    write_jsonl(tmp_path / "d.jsonl", rows)
    result = evaluate_detector(oracle, [f"jsonl:{tmp_path / 'd.jsonl'}"])
    assert result["n"] == 3 and result["not_labelled"] == 1
    assert result["sign_accuracy"] == 0.5
    assert result["cosine"] == pytest.approx((1 - 1 + 1) / 3)
    assert result["l2"] == pytest.approx((0.5 + 2 + 0) / 3)
    assert result["macro_f1"] is None and result["all_ones_macro_f1"] is None
    assert json.loads(json.dumps(result)) == result


def test_evaluation_of_categories_uses_the_stored_threshold(oracle, tmp_path):
    marks = [[1, *[0] * 19], [0, *[1] * 19]]
    arguments, labels = tmp_path / "a.tsv", tmp_path / "l.tsv"
    said = ["1" + "0" * 19, "1" * 20]
    rows = [[f"A{i}", said[i], "against", "{}"] for i in range(2)]
    arguments.write_text("\n".join("\t".join(row) for row in [ARGUMENT_COLUMNS, *rows]))
    table = [LABEL_COLUMNS, *([f"A{i}", *map(str, marks[i])] for i in range(2))]
    labels.write_text("\n".join("\t".join(row) for row in table))
    # the query the detector sees is "<conclusion> [against]": the oracle reads its first 20 marks
    oracle.predict_categories = lambda q, r, batch_size=64: Oracle.predict_categories(
        oracle, [text[:20] for text in q], r
    )
    config = oracle.config
    try:
        oracle.config = type(config)(**{**vars(config), "category_threshold": 0.25})
        spec = f"valueeval23:{arguments},{labels}"
        result = evaluate_detector(oracle, [spec])
        precision = (1 / 2 + 19) / 20
        assert result["macro_f1"] == pytest.approx(2 * precision / (precision + 1))
        assert result["per_category_f1"][VALUEEVAL20.names[0]] == pytest.approx(2 / 3)
        assert result["all_ones_macro_f1"] == pytest.approx(2 * 0.5 / 1.5)
        oracle.config = type(config)(**{**vars(config), "category_threshold": 0.35})
        assert evaluate_detector(oracle, [spec])["macro_f1"] == 0
    finally:
        oracle.config = config
        del oracle.predict_categories


def test_data_without_labels_is_refused(oracle, tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [Dialogue(query="q", response="r")])
    with pytest.raises(ValueError, match="no labels to evaluate against in jsonl:"):
        evaluate_detector(oracle, [f"jsonl:{tmp_path / 'd.jsonl'}"])
