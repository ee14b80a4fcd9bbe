"""A built data set as its users meet it: tables, card, counting anew, push, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visa_core import cli
from visa_core.data.schema import DataError, read_jsonl_strict
from visa_core.types import Dialogue, RewriteExample
from visa_core.values import SCHWARTZ

Complaint = Callable[..., str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the embedded default, by the command."""
    out = tmp_path_factory.mktemp("built") / "set"
    assert cli.main(["data", "build", "--data", "embedded:120", "--out", str(out)]) == 0
    return out


def test_the_embedded_default_is_complete(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    names = "README.md report.json run.json raw.jsonl set_aside.jsonl answers.sqlite .lock"
    assert {p.name for p in built.iterdir()} == {*names.split(), "triplets", "responses", "figures"}
    stages = report["stages"]
    assert stages["comparisons annotated"] == stages["comparisons read"]
    kept = stages["different comparisons"] - stages["dropped: ambiguous anchors"]
    twice = 2 * (kept - stages["dropped: negligible shift"])
    assert stages["triplets"] == twice - stages["dropped: duplicate triplets"]
    assert sum(report["files"]["triplets"].values()) == stages["triplets"]
    from PIL import Image

    for name in ("levels", "shifts", "sizes"):
        with Image.open(built / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 20


def test_datasets_reads_both_tables_and_both_formats(built: Path, tmp_path: Path) -> None:
    import datasets

    report = json.loads((built / "report.json").read_text())
    cache = str(tmp_path / "cache")
    for name in ("triplets", "responses"):
        table = datasets.load_dataset(str(built), name, cache_dir=cache)
        assert {split: len(rows) for split, rows in table.items()} == report["files"][name]
        lines = built / name / "train.jsonl"
        whole = datasets.load_dataset("json", data_files=str(lines), cache_dir=cache, split="train")
        assert whole.to_list() == table["train"].to_list()
        assert whole.to_list() == [json.loads(line) for line in lines.open()]


def test_records_are_those_of_the_trainers(built: Path) -> None:
    triplets = read_jsonl_strict(built / "triplets" / "train.jsonl", RewriteExample)
    for t in triplets[:50]:
        for name in SCHWARTZ.names:
            assert t.target[name] == t.values[name] + t.shift[name]
        assert math.dist(t.target.values(), t.values.values()) >= 0.5
    assert read_jsonl_strict(built / "responses" / "train.jsonl", Dialogue)


def test_the_card_says_what_the_report_says(built: Path) -> None:
    card = (built / "README.md").read_text()
    report = json.loads((built / "report.json").read_text())
    for stage, count in report["stages"].items():
        assert f"| {stage} | {count:,} |" in card
    assert "built from: `embedded:120`" in card and "counts English words" in card
    assert f"unique target vectors: {report['statistics']['unique_vectors']:,}" in card


def test_a_filtered_set_is_counted_anew(built: Path, tmp_path: Path, capsys: Any) -> None:
    import shutil

    import pyarrow.parquet as pq

    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    lines = (copy / "triplets" / "train.jsonl").read_text().splitlines()[:10]
    (copy / "triplets" / "train.jsonl").write_text("\n".join(lines) + "\n")
    (copy / "triplets" / "test.jsonl").unlink()
    (copy / "triplets" / "validation.jsonl").write_text("")
    assert cli.main(["data", "card", "--folder", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["triplets"] == 10
    assert pq.read_table(copy / "triplets" / "train.parquet").num_rows == 10
    assert {p.name for p in (copy / "triplets").glob("*.parquet")} == {"train.parquet"}
    report = json.loads((copy / "report.json").read_text())
    assert report["files"]["triplets"] == {"train": 10, "validation": 0, "test": 0}
    (copy / "triplets" / "train.jsonl").write_text(lines[0].replace('"target"', '"aim"') + "\n")
    with pytest.raises(DataError, match=r"train.jsonl:1: field 'target' must be an object"):
        from visa_core.commands import data, data_options

        data.card(data_options.CardOptions(folder=copy))


def test_push_without_credentials_is_refused(
    built: Path, tmp_path: Path, complaint: Complaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    said = complaint("data", "push", "--folder", built, "--repo", "someone/something")
    assert "no credentials for the hub: set the variable HF_TOKEN, or run hf auth login" in said
    said = complaint("data", "push", "--folder", built, "--repo", "something")
    assert "--repo 'something' is not of the form OWNER/NAME" in said
    said = complaint("data", "push", "--folder", tmp_path, "--repo", "a/b")
    assert "holds no finished build, run visa data build" in said


def test_push_uploads_the_set_and_not_the_answers(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What goes out is chosen by huggingface_hub's own filter of the patterns that it is given."""
    from huggingface_hub.utils import filter_repo_objects

    calls: dict[str, dict[str, Any]] = {}

    class Hub:
        def create_repo(self, repo: str, **more: Any) -> None:
            calls["create"] = {"repo": repo, **more}

        def upload_folder(self, **more: Any) -> str:
            calls["upload"] = more
            return "sent"

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert cli.main(["data", "push", "--folder", str(built), "--repo", "a/b"]) == 0
    assert calls["create"]["private"] is True and calls["create"]["repo"] == "a/b"
    every = [str(p.relative_to(built)) for p in built.rglob("*") if p.is_file()]
    sent = set(filter_repo_objects(every, allow_patterns=calls["upload"]["allow_patterns"]))
    kept_back = {"answers.sqlite", "raw.jsonl", "run.json", "set_aside.jsonl", ".lock"}
    assert set(every) - sent == kept_back & set(every)


def test_wrong_options_are_named(tmp_path: Path, complaint: Complaint) -> None:
    common = ("data", "build", "--out", tmp_path / "o", "--data")
    for options, said in (
        (("ca",), "expected ca:PATH"),
        (("embedded:5", "--n", "0"), "--n must be at least 1"),
        (("embedded:5", "--triplets.near", "0"), "near must be in (0, 1]"),
        (("hh:x", "--triplets.test", "0.6", "--triplets.validation", "0.5"), "leave no prompts"),
        (("embedded:5", "--annotator.kind", "chat"), "a chat annotator needs a model"),
        (("embedded:5", "--triplets.min-shift", "9"), "no triplet is left"),
    ):  # fmt: skip
        assert said in complaint(*common, *options)


def test_a_second_build_in_the_same_folder_is_refused(built: Path, complaint: Complaint) -> None:
    from filelock import FileLock

    with FileLock(built / ".lock"):
        said = complaint("data", "build", "--data", "embedded:5", "--out", built)
    assert "another build is running there" in said
