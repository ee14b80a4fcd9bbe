"""Tables, pictures and the report of an evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from visa_core.evaluation import plots
from visa_core.evaluation.evaluate import Evaluation, evaluate
from visa_core.evaluation.report import versions, write_report
from visa_core.evaluation.tables import TRUE, dimension_markdown, to_json, to_markdown
from visa_core.training.checkpoint import CheckpointError
from visa_core.types import Consistency, RewriteExample
from visa_core.values import SCHWARTZ

SUMMARIES = {
    "copy": {"n": 250, "l2_mean": 1.25, "l2_std": 0.5, "jsr": 0.0, "true_jsr": 0.1234},
    "grpo": {"n": 250, "l2_mean": 0.5, "l2_std": 0.25, "jsr": 0.7, "length_mean": 31.26},
}


class Scorers:
    def predict(
        self, queries: list[str], responses: list[str], batch_size: int = 64
    ) -> torch.Tensor:
        return torch.tensor([[len(text) % 7 / 7 - 0.4] * 10 for text in responses])

    def consistency(
        self, sources: list[str], rewrites: list[str], batch_size: int = 64
    ) -> Consistency:
        fwd = torch.tensor([0.9 if s == r else 0.4 for s, r in zip(sources, rewrites, strict=True)])
        return Consistency(fwd=fwd, bwd=fwd / 2, mean=fwd * 5 / 6)


def truth(source: str, rewrite: str, target: torch.Tensor) -> dict[str, float]:
    keys = ("fwd", "bwd", "consistency", "l2", "cos", "facts_kept", "facts_added", "repeated")
    return dict.fromkeys(keys, 0.5) | {"unparsable": 0.25}


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    examples = [
        RewriteExample(query=f"q {i}", response="one two " * i + "end", instruction="more | less")
        for i in range(1, 6)
    ]
    targets = torch.linspace(-1, 1, 50).view(5, 10)
    methods = {
        "grpo": [f"rewrite {i}\nwith a line" for i in range(5)],
        "grpo_greedy": lambda examples, targets: [example.query for example in examples],
    }
    return evaluate(examples, targets, methods, Scorers(), Scorers(), truth=truth)


def test_markdown_table_by_hand() -> None:
    columns = (("n", "n"), ("l2", "value L2"), ("jsr", "joint"), ("length_mean", "words"))
    assert to_markdown(SUMMARIES, columns) == (
        "| method | n | value L2 | joint | words |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| copy | 250 | 1.250 ± 0.500 | 0.000 | - |\n"
        "| grpo | 250 | 0.500 ± 0.250 | 0.700 | 31.3 |\n"
    )
    assert "0.123" in to_markdown(SUMMARIES, TRUE)


def test_dimension_table_has_a_column_a_value() -> None:
    errors = {name: i / 10 for i, name in enumerate(SCHWARTZ.names)}
    table = dimension_markdown({"sft": {"mad_per_dimension": errors, "mad": 0.45}}, SCHWARTZ.names)
    header, _, row = table.splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["power"] == f"{SCHWARTZ.index('power') / 10:.3f}"
    assert cells["MAD |"] == "0.450 |"


def test_json_has_no_nan() -> None:
    record = json.loads(to_json({"a": math.nan, "b": [1.5, math.inf], "path": Path("x")}))
    assert record == {"a": None, "b": [1.5, None], "path": "x"}


def test_running_mean_by_numpy() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = plots.running_mean(values.tolist(), 2)
    inner = np.convolve(values, np.ones(5) / 5, mode="valid")
    assert np.allclose(found[2:-2], inner)
    assert found[0] == pytest.approx(values[:3].mean())


def test_metrics_file_cut_by_a_kill_is_read_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "reward": 1.0}\n{"step": 1, "rew')
    assert plots.read_metrics(path) == [{"step": 0, "reward": 1.0}]
    path.write_text('{"step": 0}\noops\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2"):
        plots.read_metrics(path)


def test_reward_curve_draws_what_was_logged(tmp_path: Path) -> None:
    rows = [{"step": i, "reward": i / 10, "cosine": -0.1 * i, "loss": 3.0} for i in range(40)]
    rows[3]["reward"] = "nan"
    assert dark_share(plots.reward_curve({"grpo": rows}, tmp_path / "reward.png")) > 0.005
    with pytest.raises(ValueError, match="'sft' logged none of reward"):
        plots.reward_curve({"sft": [{"step": 0, "loss": 1.0}]}, tmp_path / "none.png")


def dark_share(path: Path) -> float:
    """Share of pixels that are not (nearly) white."""
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape[0] > 200 and pixels.shape[1] > 200
    return float((pixels.min(axis=2) < 0.9).mean())


def test_report_holds_figures_pictures_and_texts(evaluation: Evaluation, tmp_path: Path) -> None:
    curve = tmp_path / "metrics.jsonl"
    curve.write_text("".join(json.dumps({"step": i, "reward": i}) + "\n" for i in range(9)))
    path = write_report(
        tmp_path / "out",
        evaluation,
        timing={"grpo": 12.5},
        config={"seed": 0, "out": Path("x")},
        curves={"grpo": curve},
    )
    record = json.loads(path.read_text())
    assert path == tmp_path / "out/report.json"
    assert set(record) == {"methods", "warnings", "timing_s", "config", "versions", "pictures"}
    assert list(record["methods"]) == ["copy", "grpo", "grpo_greedy"]
    assert record["methods"]["grpo"]["fwd_mean"] == pytest.approx(0.4)
    assert record["methods"]["copy"]["bwd_mean"] == pytest.approx(0.45)
    assert record["methods"]["grpo"]["true_unparsable"] == 0.25
    assert record["timing_s"]["grpo"] == 12.5 and record["config"] == {"seed": 0, "out": "x"}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or (
        record["versions"]["torch"] == torch.__version__
    )
    assert len(record["pictures"]) == 3
    for picture in record["pictures"]:
        assert dark_share(tmp_path / "out" / picture) > 0.005
    text = (tmp_path / "out/report.md").read_text()
    assert "| grpo_greedy | 5 |" in text and "rewrite 0 with a line" in text
    assert all(f"]({picture})" in text for picture in record["pictures"])
    assert all(warning in text for warning in record["warnings"])
    assert not list((tmp_path / "out").glob(".*"))


def test_report_of_copy_alone_without_curves(tmp_path: Path) -> None:
    example = RewriteExample(query="q", response="a b", instruction="i")
    alone = evaluate([example], torch.zeros(1, 10), {}, Scorers(), Scorers())
    record = json.loads(write_report(tmp_path, alone).read_text())
    assert record["pictures"] == ["tradeoff.png", "values.png"]
    assert "Known by construction" not in (tmp_path / "report.md").read_text()


def test_unwritable_folder_is_named(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file.*--out"):
        write_report(tmp_path / "file" / "out", evaluation)


def test_versions_name_what_figures_depend_on() -> None:
    assert versions()["python"].startswith("3.") and "transformers" in versions()
