"""The pipeline over a system folder: targets, results, batches, refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests import tiny
from visa_core import Pipeline
from visa_core.models.encoder import ModelFolderError
from visa_core.models.rewriter import Rewriter
from visa_core.pipeline import RewriteRequest, read_system, write_system
from visa_core.rewards import NonFiniteRewardError
from visa_core.value_space import Dimension, ValueSpace
from visa_core.values import SCHWARTZ

EXAMPLE = tiny.examples(4)[0]


@pytest.fixture(scope="module")
def pipeline(small_system: Path) -> Pipeline:
    return Pipeline.from_pretrained(small_system, device="cpu")


def vector(values: dict[str, float]) -> torch.Tensor:
    assert tuple(values) == SCHWARTZ.names
    return torch.tensor(list(values.values()))


def test_target_of_an_instruction_is_values_plus_shift_clipped(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The translator's shift is set by hand, wide enough that both ends are clipped."""
    shift = torch.linspace(-2, 2, 10)
    monkeypatch.setattr(pipeline.translator, "predict", lambda *texts, **options: shift[None])
    result = pipeline.rewrite(EXAMPLE.query, EXAMPLE.response, instruction=EXAMPLE.instruction)
    before = pipeline.detector.predict([EXAMPLE.query], [EXAMPLE.response])[0]
    expected = [max(-1.0, min(1.0, float(v + s))) for v, s in zip(before, shift, strict=True)]
    assert expected[0] == -1.0 and expected[-1] == 1.0
    assert torch.allclose(vector(result.target), torch.tensor(expected), atol=1e-4)
    assert torch.allclose(vector(result.values_before), before, atol=1e-4)


@pytest.mark.parametrize("target", ["security=1, power=-0.5", {"power": -0.5, "Security": 1}])
def test_an_explicit_target_is_used_as_given_and_the_rest_is_zero(
    pipeline: Pipeline, target: str | dict[str, float]
) -> None:
    result = pipeline.rewrite(EXAMPLE.query, EXAMPLE.response, target=target)
    assert result.target == dict.fromkeys(SCHWARTZ.names, 0.0) | {"security": 1.0, "power": -0.5}


def test_scores_are_those_of_the_parts(pipeline: Pipeline) -> None:
    result = pipeline.rewrite(EXAMPLE.query, EXAMPLE.response, target="security=1")
    assert result.text.strip()
    after = pipeline.detector.predict([EXAMPLE.query], [result.text])[0].double()
    wanted = torch.zeros(SCHWARTZ.size, dtype=torch.float64)
    wanted[SCHWARTZ.index("security")] = 1
    entailment = pipeline.fact_analyzer.predict(
        [result.text, EXAMPLE.response], [EXAMPLE.response, result.text]
    )[:, 0].tolist()
    assert torch.allclose(vector(result.values_after).double(), after, atol=1e-4)
    assert (result.fwd, result.bwd) == pytest.approx(entailment, abs=1e-5)
    assert result.consistency == pytest.approx((2 * entailment[0] + entailment[1]) / 3, abs=1e-5)
    assert result.l2 == pytest.approx(float((after - wanted).square().sum().sqrt()), abs=1e-5)
    assert result.cosine == pytest.approx(float(after @ wanted / after.norm()), abs=1e-5)
    assert result.success is (result.l2 < 0.8 and result.consistency > 0.3)


def test_success_follows_the_thresholds(pipeline: Pipeline, small_system: Path) -> None:
    loose = dataclasses.replace(pipeline.config, l2_below=100.0, consistency_above=0.0)
    easy = Pipeline.from_pretrained(small_system, device="cpu", config=loose)
    request = {"query": EXAMPLE.query, "response": EXAMPLE.response, "target": "security=1"}
    assert easy.rewrite(**request).success and not pipeline.rewrite(**request).success


def test_a_rewrite_cut_at_the_limit_says_so(pipeline: Pipeline) -> None:
    result = pipeline.rewrite(EXAMPLE.query, EXAMPLE.response, target="security=1")
    ids = pipeline.rewriter.tokenizer(result.text)["input_ids"]
    assert result.finished is (len(ids) < pipeline.rewriter.max_completion)


def test_a_rewrite_that_ends_is_finished(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = list(range(len(pipeline.rewriter.tokenizer)))
    monkeypatch.setattr(Rewriter, "stop_ids", everything)
    result = pipeline.rewrite(EXAMPLE.query, EXAMPLE.response, target="security=1")
    assert result.finished


def test_many_equal_single_in_order(pipeline: Pipeline) -> None:
    requests = [
        RewriteRequest(query=e.query, response=e.response, instruction=e.instruction)
        if i % 2
        else RewriteRequest(query=e.query, response=e.response, target=e.target)
        for i, e in enumerate(tiny.examples(7, seed=3))
    ]
    together = pipeline.rewrite_many(requests, batch_size=3)
    for request, result in zip(requests, together, strict=True):
        alone = pipeline.rewrite(**dataclasses.asdict(request))
        assert result.text == alone.text
        assert result.target == pytest.approx(alone.target, abs=2e-4)
        assert result.consistency == pytest.approx(alone.consistency, abs=1e-4)
    assert pipeline.rewrite_many([]) == []


def test_sampling_depends_on_the_seed_alone(pipeline: Pipeline) -> None:
    request = {"query": EXAMPLE.query, "response": EXAMPLE.response, "target": "security=1"}
    texts = [pipeline.rewrite(**request, temperature=1.0, seed=s).text for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_detect_gives_every_value_by_name(pipeline: Pipeline) -> None:
    rows = tiny.examples(3)
    found = pipeline.detect([e.query for e in rows], [e.response for e in rows])
    expected = pipeline.detector.predict([e.query for e in rows], [e.response for e in rows])
    for values, row in zip(found, expected, strict=True):
        assert torch.allclose(vector(values), row, atol=1e-4)


def test_to_dict_is_json_and_holds_all(pipeline: Pipeline) -> None:
    result = pipeline.rewrite(EXAMPLE.query, EXAMPLE.response, target="security=1")
    row = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert row["rewrite"] == result.text and row["target_values"] == result.target
    fields = {field.name for field in dataclasses.fields(result)} - {"text", "target"}
    assert set(row) == fields | {"rewrite", "target_values"}
    assert all(row[name] == getattr(result, name) for name in fields)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"response": "", "target": "security=1"}, "field 'response' is empty"),
        ({"response": " \n", "target": "security=1"}, "field 'response' is empty"),
        ({"query": " ", "target": "security=1"}, "field 'query' is empty"),
        ({"instruction": ""}, "field 'instruction' is empty"),
        ({}, "'instruction' and 'target' are both missing"),
        ({"instruction": "a", "target": "security=1"}, "exclude each other"),
        ({"target": {"securty": 1}}, "target: unknown value 'securty'.*Did you mean security"),
        ({"target": {"security": 1.5}}, r"target: value 'security' must be in \[-1, 1\], got 1.5"),
        ({"target": "security=-2"}, r"target: value 'security' must be in \[-1, 1\], got -2"),
        ({"target": {"security": float("nan")}}, "target: value 'security' must be finite"),
        ({"target": "security"}, "target: expected NAME=NUMBER"),
        ({"target": 3}, "target: expected values by name"),
    ],
)
def test_bad_requests_are_refused(pipeline: Pipeline, request_: dict, message: str) -> None:
    request = {"query": EXAMPLE.query, "response": EXAMPLE.response} | request_
    with pytest.raises(ValueError, match=message):
        pipeline.rewrite(**request)


def test_a_response_too_long_for_the_rewriter_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="prompt has .* tokens, more than max_prompt = 160"):
        pipeline.rewrite("why?", "word " * 300, target="security=1")


def test_saved_system_gives_the_same_rewrites(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "copy")
    again = Pipeline.from_pretrained(tmp_path / "copy", device="cpu")
    request = RewriteRequest(query="why?", response=EXAMPLE.response, instruction="be kinder")
    assert again.rewrite_many([request]) == pipeline.rewrite_many([request])


def test_a_system_without_translator_takes_targets_only(pipeline: Pipeline, tmp_path: Path) -> None:
    Pipeline(pipeline.detector, None, pipeline.fact_analyzer, pipeline.rewriter).save_pretrained(
        tmp_path
    )
    assert not (tmp_path / "translator").exists()
    alone = Pipeline.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="no translator"):
        alone.rewrite("why?", EXAMPLE.response, instruction="be kinder")
    assert alone.rewrite("why?", EXAMPLE.response, target="security=1").target["security"] == 1


def test_damaged_weights_are_reported_not_returned(small_system: Path) -> None:
    broken = Pipeline.from_pretrained(small_system, device="cpu")
    with torch.no_grad():
        broken.detector.vector_head.score.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteRewardError, match="detector returned NaN"):
        broken.rewrite("why?", EXAMPLE.response, target="security=1")


def linked(system: Path, folder: Path) -> dict:
    """A copy of the system by links; returns what its visa.json holds."""
    folder.mkdir()
    record = json.loads((system / "visa.json").read_text())
    for name in ("detector", "translator", "fact_analyzer", "rewriter"):
        (folder / name).symlink_to(system / name)
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": "elsewhere"}, "visa.json names .*elsewhere as its detector.*not exist"),
        ({"detector": None}, "'detector' must be the path of a folder, got None"),
        ({"space": {"name": "x"}}, "visa.json: value space lacks the key 'dimensions'"),
        ({"spaces": {}}, "expected the keys space, detector"),
    ],
)
def test_a_wrong_system_file_is_refused(
    small_system: Path, tmp_path: Path, change: dict, message: str
) -> None:
    record = linked(small_system, tmp_path / "system")
    (tmp_path / "system/visa.json").write_text(json.dumps(record | change))
    with pytest.raises(ModelFolderError, match=message):
        read_system(tmp_path / "system")


def test_a_torn_system_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "visa.json").write_text('{\n "space":')
    with pytest.raises(ModelFolderError, match=r"visa.json:2: not valid JSON"):
        Pipeline.from_pretrained(tmp_path)


def test_a_folder_without_system_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no visa.json. Give the folder that `visa quick"):
        Pipeline.from_pretrained(tmp_path)


def test_write_system_refuses_a_missing_part(small_system: Path, tmp_path: Path) -> None:
    shutil.copytree(small_system / "detector", tmp_path / "detector")
    with pytest.raises(ModelFolderError, match="its translator .* is not there"):
        write_system(tmp_path)
    assert not (tmp_path / "visa.json").exists()


def test_parts_of_another_value_space_are_refused(small_system: Path, tmp_path: Path) -> None:
    record = linked(small_system, tmp_path / "system")
    names = [Dimension(name=n, title=n.title(), definition=n) for n in ("calm", "zeal")]
    record["space"] = ValueSpace(name="moods", dimensions=tuple(names)).to_dict()
    (tmp_path / "system/visa.json").write_text(json.dumps(record))
    with pytest.raises(ModelFolderError, match="rewriter speaks of .*'schwartz'.*of 'moods'"):
        Pipeline.from_pretrained(tmp_path / "system", device="cpu")
