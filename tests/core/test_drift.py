"""Value drift: its arithmetic, its chance level, the command over folders and a real endpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import permutation_test

from tests.core.test_pairwise import small_set
from tests.http_server import ChatServer
from tests.tiny import texts, write_causal_lm, write_lines
from visa_core.cli import main
from visa_core.commands.value_options import DriftOptions
from visa_core.endpoints import ChatConfig
from visa_core.evaluation.drift import Readings, drift, judged_readings, profile


def readings(values: object) -> Readings:
    values_QD = np.asarray(values, dtype=float)
    return Readings(names=tuple("abcdefgh"[: values_QD.shape[1]]), values_QD=values_QD)


def test_drift_is_the_mean_of_absolute_changes() -> None:
    """By hand: a moves by (0.2 + 0.4) / 2, b by -0.1; c is asked in neither."""
    nan = np.nan
    base = readings([[0.5, nan, nan], [0.1, nan, nan], [nan, 0.6, nan]])
    tuned = readings([[0.7, nan, nan], [0.5, nan, nan], [nan, 0.5, nan]])
    record = drift(base, tuned)
    assert record["drift"] == pytest.approx((0.3 + 0.1) / 2)
    assert record["changes"]["a"]["mean"] == pytest.approx(0.3)
    assert record["changes"]["b"]["mean"] == pytest.approx(-0.1)
    assert record["changes"]["c"] == {"mean": None, "interval": None, "n": 0}
    assert profile(base)["a"]["mean"] == pytest.approx(0.3)


def test_p_and_chance_are_scipys() -> None:
    """Against scipy's paired permutation test over all sign changes."""
    rng = np.random.default_rng(3)
    base, tuned = rng.random(9), rng.random(9) + 0.15
    exact = permutation_test(
        (base, tuned),
        lambda x, y, axis: np.abs((y - x).mean(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
    )
    record = drift(readings(base[:, None]), readings(tuned[:, None]), draws=20000)
    assert record["p"] == pytest.approx(exact.pvalue, abs=0.02)
    assert record["by_chance"] == pytest.approx(exact.null_distribution.mean(), abs=0.01)


def test_without_a_change_p_is_uniform() -> None:
    """Of 200 pairs of models with the same true profile about a tenth have p <= 0.1."""
    rng = np.random.default_rng(0)
    small = 0
    for seed in range(200):
        base, tuned = (rng.binomial(20, 0.4, (40, 3)) / 20 for _ in range(2))
        record = drift(readings(base), readings(tuned), seed, draws=200)
        small += record["p"] <= 0.1
    assert 6 <= small <= 36


def test_models_without_a_common_question_are_refused() -> None:
    with pytest.raises(ValueError, match="no answered question in common"):
        drift(readings([[0.1], [np.nan]]), readings([[np.nan], [0.2]]))


def test_judged_readings_keep_each_question_in_its_dimension() -> None:
    record = {
        "dimensions": {"a": {}, "b": {}},
        "questions": {
            "q1": {"dimension": "a", "mean": 0.25},
            "q2": {"dimension": "b", "mean": None},
            "q3": {"dimension": "b", "mean": 1.0},
        },
    }
    expected = [[0.25, np.nan], [np.nan, np.nan], [np.nan, 1.0]]
    np.testing.assert_equal(judged_readings(record).values_QD, expected)


def test_over_an_endpoint_with_a_known_change(tmp_path: Path) -> None:
    """The tuned model wins where the base loses: a change of +1 in the one dimension."""

    def answer(body: dict) -> str:
        text = body["messages"][-1]["content"]
        if body["model"] != "judge":
            return "STRONG words" if body["model"] == "after" else "weak words"
        first, second = text.split("Response 1:")[1].split("Response 2:")
        if "STRONG" in text.split("Response 1:")[1]:
            return "1" if "STRONG" in first else "2"
        return "2" if "weak" in first else "1"

    out = tmp_path / "out"
    with ChatServer(answer=answer) as server:
        command = ["drift", "--base", f"before@{server.url}"]
        command += ["--tuned", f"later=after@{server.url}"]
        command += ["--judge.model", "judge", "--judge.base-url", server.url, "--answers", "2"]
        command += ["--questions", str(small_set(tmp_path, 5)), "--out", str(out), "--json"]
        assert main(command) == 0
        asked = len(server.requests)
        assert asked == 2 * (10 + 20)
        assert main(command) == 0
        assert len(server.requests) == asked
    record = json.loads((out / "drift.json").read_text())
    seen = record["readers"]["judge"]["drift"]["later"]
    assert seen["drift"] == 1.0 and seen["questions"] == 5
    # Five questions: the smallest p is that of 2 of 32 sign patterns.
    assert seen["p"] == pytest.approx(2 / 32, abs=0.02)
    assert [(out / name).read_bytes()[:4] for name in record["pictures"]] == [b"\x89PNG"] * 3
    assert "| later | 1.0000 |" in (out / "drift.md").read_text()


def test_the_experiment_on_neutral_data(tmp_path: Path, small_system: Path) -> None:
    """A tiny model tuned on two domains; judged by words and read by a detector. A copy of the base
    does not drift at all; what is trained and asked stays when started again.
    """
    base, out = tmp_path / "lm", tmp_path / "out"
    write_causal_lm(base, texts())
    shutil.copytree(base, tmp_path / "twin")
    law = write_lines(
        tmp_path / "law.jsonl",
        [{"question": f"May clause {i} be void?", "answer": "Yes, in part."} for i in range(6)],
    )
    maths = write_lines(
        tmp_path / "maths.jsonl",
        [
            {"problem": "1+1", "solution": "It is $\\boxed{2}$.", "answer": "2",
             "subject": "Algebra", "level": 1}
        ],
    )  # fmt: skip
    command = ["drift", "--base", base, "--tuned", f"same={tmp_path / 'twin'}", "--out", out]
    command += ["--neutral", f"law=jsonl:{law}", f"maths=math500:{maths}"]
    command += ["--train.steps", "2", "--train.lr", "0.05", "--train.batch-size", "2"]
    command += ["--train.precision", "fp32", "--chat.device", "cpu"]
    command += ["--judge.model", "embedded", "--detector", small_system / "detector"]
    command += ["--answers", "2", "--max-tokens", "8", "--questions", small_set(tmp_path, 4)]
    assert main([str(part) for part in command]) == 0
    record = json.loads((out / "drift.json").read_text())
    assert set(record["readers"]) == {"judge", "detector"}
    for reader, dimensions in (("judge", 1), ("detector", 10)):
        seen = record["readers"][reader]
        assert list(seen["profiles"]) == ["lm", "same", "law", "maths"]
        assert list(seen["drift"]) == ["same", "law", "maths"]
        assert len(seen["profiles"]["lm"]) == dimensions
        assert seen["drift"]["same"]["drift"] == 0.0 and seen["drift"]["same"]["p"] == 1.0
    assert record["readers"]["detector"]["drift"]["law"]["drift"] > 0
    assert len(record["pictures"]) == 6
    weights = out / "models" / "law" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    answers = (out / "answers" / "law" / "answers.jsonl").read_bytes()
    assert main([str(part) for part in command]) == 0
    assert weights.stat().st_mtime_ns == written
    assert (out / "answers" / "law" / "answers.jsonl").read_bytes() == answers


def test_how_models_are_named(tmp_path: Path) -> None:
    odd = tmp_path / "a=b@c"
    odd.mkdir()
    options = DriftOptions(
        base=str(odd),
        tuned=("x=m/y@http://localhost:1/v1", "plain/folder", "z=other"),
        judge=ChatConfig(model="embedded"),
        out=tmp_path,
    )
    named = {name: (chat.model, chat.base_url) for name, chat in options.models().items()}
    assert named == {
        "a=b@c": (str(odd), ""),
        "x": ("m/y", "http://localhost:1/v1"),
        "folder": ("plain/folder", ""),
        "z": ("other", ""),
    }


def test_bad_input_is_told(tmp_path: Path, complaint) -> None:
    start = ("drift", "--base", tmp_path / "a", "--out", tmp_path / "out")
    embedded = ("--judge.model", "embedded")
    assert "--tuned: name at least one model" in complaint(*start, *embedded)
    assert "say how values are read" in complaint(*start, "--tuned", "b")
    assert "two models are called 'a'" in complaint(*start, "--tuned", "c/a", *embedded)
    assert "models are named by --base" in complaint(
        *start, "--tuned", "b", *embedded, "--chat.model", "x"
    )
    assert "expected NAME=math500:PATH" in complaint(*start, *embedded, "--neutral", "law=x")
    url = ("drift", "--base", "m@http://localhost:9/v1", "--out", tmp_path / "out", *embedded)
    assert "--base must be a local folder" in complaint(*url, "--neutral", "law=jsonl:x")
    assert "is not a model folder" in complaint(*start, "--tuned", "b", *embedded)
