"""Composite reward: hand-computed figures, worst cases, non-finite scores, repeats."""

from __future__ import annotations

import math

import pytest
import torch

from visa_core.config import RewardConfig
from visa_core.rewards import (
    NonFiniteRewardError,
    NonFiniteRewardWarning,
    RewardModel,
    combine,
    repeated_share,
    semantic_term,
    worst_reward,
)
from visa_core.types import Consistency

TARGET = torch.tensor([0.6, 0.8, 0.0])
VALUES = {
    "aligned": [0.3, 0.4, 0.0],
    "opposed": [-0.6, -0.8, 0.0],
    "copy": [0.0, 0.0, 1.0],
    "vacuous": [0.6, 0.8, 0.0],
    "partial": [0.8, 0.6, 0.0],
    "neutral": [0.0, 0.0, 0.0],
    "broken": [math.nan, 0.0, 0.0],
}
ENTAILMENT = {
    "aligned": (0.9, 0.4),
    "opposed": (1.0, 1.0),
    "copy": (1.0, 1.0),
    "vacuous": (0.0, 1.0),
    "partial": (0.64, 0.25),
    "neutral": (0.5, 0.5),
    "broken": (0.5, 0.5),
    "lost": (math.inf, 0.5),
}


class TableDetector:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def predict(
        self, queries: list[str], responses: list[str], batch_size: int = 64
    ) -> torch.Tensor:
        self.calls += responses
        return torch.tensor([VALUES.get(text, [0.0, 0.0, 0.0]) for text in responses])


class TableAnalyzer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def consistency(
        self, sources: list[str], rewrites: list[str], batch_size: int = 64
    ) -> Consistency:
        self.calls += rewrites
        fwd, bwd = torch.tensor([ENTAILMENT.get(text, (0.2, 0.2)) for text in rewrites]).T
        return Consistency(fwd=fwd, bwd=bwd, mean=(2 * fwd + bwd) / 3)


def score(rewrites: list[str], finished: list[bool] | None = None, **options: object):
    model = RewardModel(TableDetector(), TableAnalyzer(), RewardConfig(**options))
    rows = len(rewrites)
    return model.score(
        ["q"] * rows,
        ["s"] * rows,
        rewrites,
        TARGET.repeat(rows, 1),
        None if finished is None else torch.tensor(finished),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1.0 + 0.6),
        ({"consistency": "min"}, 1.0 + 0.4),
        ({"consistency": "published"}, 1.0 + (2 * 0.9 + 0.4) / 3),
        ({"w_val": 2.0, "w_sem": 0.5}, 2.0 + 0.3),
        ({"form": "product"}, 1.0 * 0.6),
        ({"form": "product", "w_sem": 2.0}, 0.36),
        ({"form": "gated"}, 1.0 + 0.6),
        ({"form": "gated", "gate": 0.61}, -1.0 + 0.6),
    ],
)
def test_reward_of_an_aligned_rewrite_by_hand(options: dict[str, object], expected: float) -> None:
    assert float(score(["aligned"], **options).reward) == pytest.approx(expected, abs=1e-6)


def test_parts_by_hand() -> None:
    result = score(["partial", "neutral"])
    assert result.cosine.tolist() == pytest.approx([0.8 * 0.6 + 0.6 * 0.8, 0.0])
    assert result.semantic.tolist() == pytest.approx([0.4, 0.5])
    assert result.l2.tolist() == pytest.approx([math.sqrt(0.04 + 0.04), 1.0])
    assert result.reward.tolist() == pytest.approx([0.96 + 0.4, 0.5])
    assert result.consistency.mean.tolist() == pytest.approx([(1.28 + 0.25) / 3, 0.5])
    assert result.values.tolist()[0] == pytest.approx(VALUES["partial"])


def test_a_rewrite_without_facts_earns_nothing_by_default_but_a_third_as_published() -> None:
    assert float(score(["vacuous"]).semantic) == 0.0
    assert float(score(["vacuous"], consistency="min").semantic) == 0.0
    assert float(score(["vacuous"], form="product").reward) == 0.0
    assert float(score(["vacuous"], consistency="published").semantic) == pytest.approx(1 / 3)


def test_a_copy_earns_its_consistency_and_no_more_than_its_values() -> None:
    assert float(score(["copy"]).reward) == pytest.approx(1.0)
    assert float(score(["opposed"], form="product").reward) == 0.0


@pytest.mark.parametrize("form", ["sum", "product", "gated"])
def test_worst_reward_is_the_least_of_the_form(form: str) -> None:
    config = RewardConfig(form=form, w_val=1.5, w_sem=0.7)
    value, semantic = torch.meshgrid(
        torch.linspace(-1, 1, 41), torch.linspace(0, 1, 41), indexing="ij"
    )
    grid = combine(value.flatten(), semantic.flatten(), config)
    assert float(grid.min()) == pytest.approx(worst_reward(config))


@pytest.mark.parametrize("form", ["sum", "product", "gated"])
def test_blank_rewrites_score_worst_and_reach_no_model(form: str) -> None:
    detector, analyzer = TableDetector(), TableAnalyzer()
    model = RewardModel(detector, analyzer, RewardConfig(form=form))
    rewrites = ["", "opposed", " \n", "aligned"]
    result = model.score(["q"] * 4, ["s"] * 4, rewrites, TARGET.repeat(4, 1))
    assert result.reward[0] == result.reward[2] == worst_reward(model.config)
    assert (result.reward[[0, 2]] <= result.reward[[1, 3]].min()).all()
    assert result.worst.tolist() == [True, False, True, False]
    assert sorted(detector.calls) == sorted(analyzer.calls) == ["aligned", "opposed"]
    assert result.consistency.fwd[0] == result.consistency.bwd[0] == 0


def test_only_blank_rewrites() -> None:
    assert score(["", ""]).reward.tolist() == [-1.0, -1.0]


def test_unfinished_rewrites() -> None:
    rewrites, finished = ["aligned", "aligned"], [True, False]
    assert score(rewrites, finished).reward.tolist() == pytest.approx([1.6, -1.0])
    penalised = score(rewrites, finished, unfinished="penalty", unfinished_penalty=0.3)
    assert penalised.reward.tolist() == pytest.approx([1.6, 1.3])
    assert score(rewrites, finished, unfinished="ignore").reward.tolist() == pytest.approx(
        [1.6, 1.6]
    )


def test_penalties_stop_at_the_worst_reward() -> None:
    result = score(["opposed"], [False], unfinished="penalty", unfinished_penalty=9.0)
    assert result.reward.tolist() == [-1.0]


def test_repetition_costs_its_share() -> None:
    text = "a b c d a b c d"
    assert repeated_share(text) == pytest.approx(1 / 5)
    assert repeated_share("a b c") == 0.0
    plain, charged = score([text]), score([text], repetition_weight=0.5)
    assert float(plain.reward - charged.reward) == pytest.approx(0.1)


def test_distance_makes_intensity_count() -> None:
    """"aligned" and "vacuous" point the target's way; their distances to it are 0.5 and 0."""
    plain = score(["aligned", "vacuous"])
    charged = score(["aligned", "vacuous"], distance_weight=0.4)
    assert plain.cosine.tolist() == pytest.approx([1.0, 1.0])
    assert (plain.reward - charged.reward).tolist() == pytest.approx([0.2, 0.0], abs=1e-6)


def test_noise_of_a_detector_has_no_direction() -> None:
    """A vector shorter than neutral_norm is paid like a neutral one, whichever way it points."""
    VALUES["whisper"] = [0.06, 0.08, 0.0]
    ENTAILMENT["whisper"] = (1.0, 1.0)
    try:
        assert float(score(["whisper"]).reward) == pytest.approx(0 + 1)
        assert float(score(["whisper"], neutral_norm=0.0).reward) == pytest.approx(1 + 1)
        assert float(score(["whisper"]).cosine) == pytest.approx(1.0), "reported as measured"
    finally:
        del VALUES["whisper"], ENTAILMENT["whisper"]


def test_repeats_are_scored_once_and_rows_keep_their_place() -> None:
    detector, analyzer = TableDetector(), TableAnalyzer()
    model = RewardModel(detector, analyzer)
    rewrites = ["copy", "aligned", "copy", "partial", "aligned"]
    result = model.score(["q"] * 5, ["s"] * 5, rewrites, TARGET.repeat(5, 1))
    assert len(detector.calls) == len(analyzer.calls) == 3
    alone = torch.cat([score([text]).reward for text in rewrites])
    assert torch.equal(result.reward, alone)


def test_the_same_rewrite_of_two_queries_is_not_merged() -> None:
    class ByQuery(TableDetector):
        def predict(
            self, queries: list[str], responses: list[str], batch_size: int = 64
        ) -> torch.Tensor:
            return torch.tensor(
                [[0.6, 0.8, 0.0] if q == "one" else [0.0, 0.0, 1.0] for q in queries]
            )

    model = RewardModel(ByQuery(), TableAnalyzer())
    result = model.score(["one", "two"], ["s", "s"], ["copy", "copy"], TARGET.repeat(2, 1))
    assert result.cosine.tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(("text", "component"), [("broken", "detector"), ("lost", "fact analyzer")])
def test_non_finite_scores_stop_with_component_and_row(text: str, component: str) -> None:
    with pytest.raises(NonFiniteRewardError, match=f"the {component} .*1 of 3.*row 1: '{text}'"):
        score(["aligned", text, "copy"])


def test_non_finite_scores_can_be_replaced_and_counted() -> None:
    with pytest.warns(NonFiniteRewardWarning, match="2 of 3"):
        result = score(["aligned", "broken", "lost"], non_finite="worst")
    assert result.reward.tolist() == pytest.approx([1.6, -1.0, -1.0])
    assert result.non_finite == 2


def test_non_finite_targets_and_uneven_rows_are_refused() -> None:
    model = RewardModel(TableDetector(), TableAnalyzer())
    with pytest.raises(NonFiniteRewardError, match=r"targets of 1 of 2 rows.*\[1\]"):
        model.score(["q"] * 2, ["s"] * 2, ["copy"] * 2, torch.stack([TARGET, TARGET * math.nan]))
    with pytest.raises(ValueError, match="'rewrites': 1"):
        model.score(["q"] * 2, ["s"] * 2, ["copy"], TARGET.repeat(2, 1))


@pytest.mark.parametrize(
    "options", [{"w_val": -1.0}, {"w_val": 0.0, "w_sem": 0.0}, {"gate": 1.5}, {"w_sem": math.nan}]
)
def test_senseless_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="reward"):
        RewardConfig(**options)


def test_unknown_consistency_is_refused() -> None:
    ones = torch.ones(1)
    with pytest.raises(ValueError, match="geometric"):
        semantic_term(Consistency(fwd=ones, bwd=ones, mean=ones), "median")
