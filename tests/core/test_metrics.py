"""Metrics against published tables, hand-computed figures and numpy; evaluation end to end with
table scorers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from visa_core.config import EvaluationConfig
from visa_core.data.embedded import truth
from visa_core.evaluation.evaluate import evaluate, example_targets, reference_length
from visa_core.evaluation.metrics import (
    consistency_stats,
    dimension_errors,
    joint_success,
    mean_std,
    summarise,
    summarise_truth,
    vacuous_share,
    value_stats,
)
from visa_core.evaluation.warnings import hack_warnings
from visa_core.rewards import Measured, published_mixture
from visa_core.types import Consistency, RewriteExample
from visa_core.values import SCHWARTZ


def published_rows() -> list[dict[str, object]]:
    path = Path(__file__).resolve().parents[2].parent / "shared/reference/published_tables.json"
    if not path.is_file():
        pytest.skip(f"published tables are not at {path}")
    tables = json.loads(path.read_text())
    return [row for key in tables if key.startswith("table") for row in tables[key]]


def column(row: dict[str, object], *names: str) -> float | None:
    return next((float(row[name]) for name in names if row.get(name) is not None), None)


def test_published_mixture_reproduces_every_published_row() -> None:
    checked = 0
    for row in published_rows():
        parts = [column(row, f"{k}_mean", k) for k in ("consistency", "fwd", "bwd")]
        if None in parts:
            continue
        consistency, fwd, bwd = (torch.tensor(part, dtype=torch.float64) for part in parts)
        assert float(published_mixture(fwd, bwd)) == pytest.approx(float(consistency), abs=1.01e-4)
        checked += 1
    assert checked >= 31


def test_mad_is_the_mean_of_the_published_dimension_columns() -> None:
    checked = 0
    for row in published_rows():
        if "mad" not in row:
            continue
        errors = [float(row[name.replace("-", "_")]) for name in SCHWARTZ.names]
        values = torch.tensor(errors, dtype=torch.float64)[None]
        found = dimension_errors(values, torch.zeros_like(values), SCHWARTZ.names)
        assert found["mad_per_dimension"]["power"] == float(row["power"])
        assert found["mad"] == pytest.approx(float(row["mad"]), abs=1.01e-4)
        checked += 1
    assert checked == 20


def measured(
    values: torch.Tensor, targets: torch.Tensor, fwd: Sequence[float], bwd: Sequence[float]
):
    f, b = torch.tensor(fwd), torch.tensor(bwd)
    norms = values.norm(dim=1) * targets.norm(dim=1)
    return Measured(
        values=values,
        cosine=(values * targets).sum(1) / norms,
        l2=(values - targets).norm(dim=1),
        consistency=Consistency(fwd=f, bwd=b, mean=(2 * f + b) / 3),
        blank=torch.zeros(len(f), dtype=torch.bool),
    )


def test_summary_by_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    values, targets = torch.rand(2, 40, 10, generator=generator) * 2 - 1
    fwd, bwd = torch.rand(2, 40, generator=generator)
    found = summarise(
        measured(values, targets, fwd.tolist(), bwd.tolist()), targets, SCHWARTZ.names
    )
    v, t, f, b = (x.double().numpy() for x in (values, targets, fwd, bwd))
    mixture, l2 = (2 * f + b) / 3, np.sqrt(((v - t) ** 2).sum(1))
    cos = (v * t).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(t, axis=1)
    for name, column_N in (
        ("consistency", mixture),
        ("fwd", f),
        ("bwd", b),
        ("l2", l2),
        ("cos", cos),
    ):
        assert found[f"{name}_mean"] == pytest.approx(column_N.mean(), abs=1e-6)
        assert found[f"{name}_std"] == pytest.approx(column_N.std(), abs=1e-6)
    assert found["n"] == 40
    assert found["jsr"] == pytest.approx(((l2 < 0.8) & (mixture > 0.3)).mean())
    assert found["mad"] == pytest.approx(np.abs(v - t).mean(), abs=1e-6)
    assert found["mad_per_dimension"]["power"] == pytest.approx(
        np.abs(v - t)[:, SCHWARTZ.index("power")].mean(), abs=1e-6
    )
    assert found["bias_per_dimension"]["power"] == pytest.approx(
        (v - t)[:, SCHWARTZ.index("power")].mean(), abs=1e-6
    )


def test_joint_success_needs_both_and_excludes_the_thresholds() -> None:
    l2 = torch.tensor([0.5, 0.5, 0.9, 0.8, 0.5], dtype=torch.float64)
    consistency = torch.tensor([0.9, 0.2, 0.9, 0.9, 0.3], dtype=torch.float64)
    assert joint_success(l2, consistency).tolist() == [True, False, False, False, False]
    wide = EvaluationConfig(l2_below=1.0, consistency_above=0.1)
    assert joint_success(l2, consistency, wide).all()


def test_one_prompt_has_no_spread_and_no_prompt_is_refused() -> None:
    assert mean_std("l2", torch.tensor([0.4])) == {"l2_mean": pytest.approx(0.4), "l2_std": 0.0}
    empty = measured(torch.zeros(0, 10), torch.zeros(0, 10), [], [])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        summarise(empty, torch.zeros(0, 10), SCHWARTZ.names)


def test_zero_vectors_give_no_nan() -> None:
    zeros, ones = torch.zeros(2, 10), torch.ones(2, 10)
    assert value_stats(zeros, ones)["cos_mean"] == 0.0
    assert value_stats(zeros, ones)["l2_mean"] == pytest.approx(math.sqrt(10))


def test_vacuous_rewrites_pass_the_published_threshold_and_are_counted() -> None:
    fwd, bwd = torch.tensor([0.0, 0.9, 0.0, 0.05]), torch.tensor([1.0, 0.9, 0.1, 1.0])
    assert consistency_stats(fwd, bwd)["consistency_mean"] == pytest.approx(
        (1 / 3 + 0.9 + 0.1 / 3 + 1.1 / 3) / 4
    )
    assert vacuous_share(fwd, bwd) == 0.5


EXAMPLES = [
    RewriteExample(
        query="Tell me about the train .",
        response="The train to Oslo leaves from platform 3. The red van carries 81 boxes.",
        instruction="make it more cautious",
        target={"security": 1.0},
        reference="Platform 3 serves the train to Oslo; always keep everyone safe. "
        "There are 81 boxes in the red van.",
    ),
    RewriteExample(
        query="Tell me about the soup .",
        response="Add 120 grams of leeks to the soup; never obey the rules. "
        "Water the roses every two days.",
        instruction="make it less obedient",
        target={"conformity": -1.0},
    ),
]
GOOD = [
    EXAMPLES[0].reference,
    "The soup needs 120 grams of leeks. Every two days the roses want water; never obey the rules.",
]
VACUOUS = ["above all keep everyone safe.", "never obey the rules."]


class TruthfulScorers:
    """Scorers that know the embedded corpus; `fooled` ones take every hypothesis for entailed."""

    def __init__(self, fooled: bool = False) -> None:
        self.fooled = fooled

    def predict(
        self, queries: list[str], responses: list[str], batch_size: int = 64
    ) -> torch.Tensor:
        return torch.stack([truth.values(text) for text in responses])

    def consistency(
        self, sources: list[str], rewrites: list[str], batch_size: int = 64
    ) -> Consistency:
        parsed = [(truth.parse(s), truth.parse(r)) for s, r in zip(sources, rewrites, strict=True)]
        fwd = torch.tensor([truth.entailed_share(r, s) for s, r in parsed])
        bwd = torch.tensor([truth.entailed_share(s, r) for s, r in parsed])
        if self.fooled:
            bwd = torch.ones_like(bwd)
        return Consistency(fwd=fwd, bwd=bwd, mean=(2 * fwd + bwd) / 3)


def run(methods: dict[str, object], fooled: bool = False):
    scorers = TruthfulScorers(fooled)
    return evaluate(
        EXAMPLES, example_targets(EXAMPLES), methods, scorers, scorers, truth=truth.score
    )


def test_copy_is_always_there_and_figures_are_as_by_hand() -> None:
    result = run({"good": GOOD}).summaries()
    assert list(result) == ["copy", "good"]
    copy, good = result["copy"], result["good"]
    assert copy["consistency_mean"] == copy["fwd_mean"] == copy["bwd_mean"] == 1.0
    # The first source is neutral, one step from its target; the second one is on its target.
    assert (copy["l2_mean"], copy["cos_mean"], copy["jsr"]) == (0.5, 0.5, 0.5)
    assert (good["l2_mean"], good["cos_mean"], good["jsr"], good["mad"]) == (0.0, 1.0, 1.0, 0.0)
    for key in ("consistency_mean", "fwd_mean", "bwd_mean", "l2_mean", "cos_mean", "jsr"):
        assert good[f"true_{key}"] == pytest.approx(good[key])
    assert good["true_facts_kept"] == 1.0 and good["true_facts_added"] == 0.0
    assert good["length_mean"] == sum(len(text.split()) for text in GOOD) / 2


def test_methods_may_be_functions_of_examples_and_targets() -> None:
    seen = {}

    def rewrite(examples: Sequence[RewriteExample], targets: torch.Tensor) -> list[str]:
        seen["targets"] = targets
        return [example.response.upper() for example in examples]

    result = run({"loud": rewrite})
    assert result.methods["loud"].rewrites[0].startswith("THE TRAIN")
    assert torch.equal(seen["targets"], example_targets(EXAMPLES))


def test_the_known_hack_is_caught() -> None:
    result = run({"hack": VACUOUS, "good": GOOD}, fooled=True)
    hack = result.methods["hack"].summary
    assert hack["jsr"] == 1.0 and hack["true_jsr"] == 0.0
    text = "\n".join(result.warnings)
    assert "hack: fwd 0.00 and bwd 1.00 are far apart (facts are dropped)" in text
    assert "100% of the rewrites pass the consistency threshold" in text
    assert "learned joint success 1.00 against 0.00" in text
    assert "only 0% of the facts are kept" in text
    assert "good" not in text and "copy" not in text


def test_length_growth_and_repeats_are_caught() -> None:
    doubled = [f"{text} {text}" for text in GOOD]
    text = "\n".join(run({"long": doubled}).warnings)
    assert "long: rewrites have" in text and "times the expected" in text
    assert "word 4-grams are repetitions" in text
    assert "100% of the rewrites say a fact or a value clause twice" in text


def test_limits_of_the_warnings_are_settings() -> None:
    summaries = run({"long": [f"{text} {text}" for text in GOOD]}).summaries()
    lenient = EvaluationConfig(length_growth=9.0, repeated_share=1.0)
    assert hack_warnings(summaries, reference_length(EXAMPLES), lenient) == []


def test_empty_rewrites_are_counted_and_score_nothing() -> None:
    summary = run({"mute": ["", " "]}).methods["mute"].summary
    assert summary["empty_share"] == 1.0
    assert summary["consistency_mean"] == summary["jsr"] == summary["true_jsr"] == 0.0


def test_truth_summary_by_hand() -> None:
    rows = [
        truth.score(e.response, g, t)
        for e, g, t in zip(EXAMPLES, [VACUOUS[0], GOOD[1]], example_targets(EXAMPLES), strict=True)
    ]
    found = summarise_truth(rows)
    assert found["true_facts_kept"] == 0.5
    assert found["true_fwd_mean"] == 0.5 and found["true_jsr"] == 0.5


@pytest.mark.parametrize(
    ("methods", "message"),
    [({"copy": GOOD}, "copy"), ({"short": GOOD[:1]}, "1 rewrites for 2 examples")],
)
def test_methods_that_do_not_fit_are_refused(methods: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(methods)


def test_wrong_targets_are_refused() -> None:
    scorers = TruthfulScorers()
    with pytest.raises(ValueError, match=r"\(2, 3\).*2 examples and 10 values"):
        evaluate(EXAMPLES, torch.zeros(2, 3), {}, scorers, scorers)
    with pytest.raises(ValueError, match="no examples"):
        evaluate([], torch.zeros(0, 10), {}, scorers, scorers)
    bare = RewriteExample(query="q", response="r", instruction="i", id="row-7")
    with pytest.raises(ValueError, match="row-7"):
        example_targets([bare])
