"""Extending a detector: what each way may change, the report, restarts, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import texts
from visa_core.cli import main
from visa_core.data import embedded
from visa_core.data.embedded.further import FOURTEEN, dialogues, rewrites
from visa_core.data.schema import write_jsonl
from visa_core.evaluation.forgetting import chosen_way, errors
from visa_core.evaluation.rewriter_forgetting import analyzer_warning
from visa_core.evaluation.rewriter_forgetting import chosen_way as rewriter_choice
from visa_core.models.detector import Detector
from visa_core.models.rewriter import Rewriter
from visa_core.training import checkpoint


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, data, and the report of one extension."""
    folder = tmp_path_factory.mktemp("extend")
    torch.manual_seed(0)
    detector = Detector.create("builtin", texts=texts(), hidden_size=32, max_length=128)
    detector.save_pretrained(folder / "detector")
    FOURTEEN.save(folder / "space.json")
    sets = {
        "new": dialogues(48, 0, only_new=True),
        "old": embedded.dialogues(48, 0),
        "held": dialogues(40, 1),
        "held_old": embedded.dialogues(40, 1),
    }
    for name, rows in sets.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    assert main(command(folder)) == 0
    return folder


def command(folder: Path, *more: object) -> list[str]:
    parts = ["extend", "scorer", "--model", folder / "detector", "--space", folder / "space.json"]
    for flag, name in (("data", "new"), ("rehearsal", "old"), ("held-out", "held")):
        parts += [f"--{flag}", f"jsonl:{folder / name}.jsonl"]
    parts += ["--held-out-old", f"jsonl:{folder / 'held_old.jsonl'}", "--out", folder / "out"]
    parts += ["--add-words", "--epochs", "2", "--lr", "0.01", "--device", "cpu"]
    return [str(part) for part in (*parts, *more)]


def old_rows() -> tuple[list[str], list[str]]:
    rows = embedded.dialogues(30, 9)
    return [r.query for r in rows], [r.response for r in rows]


def test_frozen_keeps_old_values(work: Path) -> None:
    """Every old weight to the last bit, so decay and moments are undone too; readings of texts of
    old words to the rounding of a wider product.
    """
    old = Detector.from_pretrained(work / "detector")
    frozen = Detector.from_pretrained(work / "out" / "frozen")
    same = [old.encoder.tokenize([t]) == frozen.encoder.tokenize([t]) for t in texts()]
    known = [text for text, is_same in zip(texts(), same, strict=True) if is_same]
    assert len(known) > 20
    before = old.predict(known, known)
    torch.testing.assert_close(frozen.predict(known, known)[:, :10], before, rtol=0, atol=2e-6)
    new_weights = frozen.state_dict()
    for name, weight in old.state_dict().items():
        assert torch.equal(new_weights[name][: len(weight)], weight), name
    plain = Detector.from_pretrained(work / "out" / "plain")
    assert (plain.predict(known, known)[:, :10] - before).abs().max() > 1e-3


def test_new_values_are_learnt(work: Path) -> None:
    metrics = work / "out" / "rehearsal" / "metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


def test_the_report_holds_every_way(work: Path) -> None:
    record = json.loads((work / "out" / "forgetting.json").read_text())
    assert set(record["measured"]) == {"before", "frozen", "rehearsal", "plain"}
    assert record["new"] == ["thrift", "humour", "punctuality", "humility"]
    assert record["chosen"] in ("frozen", "rehearsal")
    chosen = Detector.from_pretrained(work / "out" / "model")
    way = Detector.from_pretrained(work / "out" / record["chosen"])
    assert torch.equal(chosen.predict(*old_rows()), way.predict(*old_rows()))
    assert "| plain fine-tune on the new data |" in (work / "out" / "forgetting.md").read_text()


def test_started_again_nothing_is_trained_twice(work: Path) -> None:
    weights = work / "out" / "rehearsal" / "heads.safetensors"
    written = weights.stat().st_mtime_ns
    report = (work / "out" / "forgetting.json").read_bytes()
    assert main(command(work)) == 0
    assert weights.stat().st_mtime_ns == written
    assert (work / "out" / "forgetting.json").read_bytes() == report


def test_stopped_in_the_middle_it_ends_the_same(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before its second checkpoint of the second way; the weights end bit-identical."""
    again = command(work, "--save-every", "1")
    whole, part = work / "whole", work / "part"
    out = again.index("--out") + 1
    assert main([*again[:out], str(whole), *again[out + 1 :]]) == 0
    saved, written = checkpoint.save_checkpoint, []

    def stopping(*arguments: object, **more: object) -> object:
        written.append(arguments)
        if len(written) == 5:
            raise OSError("stopped here")
        return saved(*arguments, **more)

    from visa_core.training import run

    monkeypatch.setattr(run, "save_checkpoint", stopping)
    assert main([*again[:out], str(part), *again[out + 1 :]]) != 0
    monkeypatch.setattr(run, "save_checkpoint", saved)
    assert main([*again[:out], str(part), *again[out + 1 :]]) == 0
    for way in ("frozen", "rehearsal", "plain"):
        one, two = (Detector.from_pretrained(folder / way) for folder in (whole, part))
        assert torch.equal(one.predict(*old_rows()), two.predict(*old_rows()))


def test_explained_is_scikit_learns() -> None:
    mean_squared_error = pytest.importorskip("sklearn.metrics").mean_squared_error

    rng = np.random.default_rng(0)
    truth, read = rng.normal(size=(2, 50, 3))
    record = errors(torch.tensor(read), torch.tensor(truth))
    assert record["mse"] == pytest.approx(mean_squared_error(truth, read))
    base = mean_squared_error(truth, np.broadcast_to(truth.mean(0), truth.shape))
    assert record["explained"] == pytest.approx(1 - record["mse"] / base)


def test_the_better_protected_way_is_chosen() -> None:
    def way(old: float, new: float) -> dict:
        return {"mse": old, "new": {"mse": new}}

    measured = {"before": {"mse": 1.0}, "frozen": way(1.0, 0.5), "rehearsal": way(1.01, 0.2)}
    assert chosen_way(measured, ("frozen", "rehearsal"), 0.02) == "rehearsal"
    assert chosen_way(measured, ("frozen", "rehearsal"), 0.001) == "frozen"
    measured["frozen"] = way(1.2, 0.1)
    assert chosen_way(measured, ("frozen", "rehearsal"), 0.001) == "rehearsal"


def rewriter_command(work: Path, system: Path, out: Path) -> list[str]:
    parts = ["extend", "rewriter", "--model", system / "rewriter", "--out", out]
    return [str(part) for part in (*parts, "--space", work / "space.json")]


def test_a_rewriter_is_only_widened(work: Path, small_system: Path, tmp_path: Path) -> None:
    assert main(rewriter_command(work, small_system, tmp_path / "o")) == 0
    assert Rewriter.from_pretrained(tmp_path / "o" / "start").space.names == FOURTEEN.names


def test_a_rewriter_learns_new_values(work: Path, small_system: Path, tmp_path: Path) -> None:
    """Both ways are trained and measured beside copying; started again, nothing is done twice."""
    sets = {"tasks": rewrites(24, 0, only_new=True), "held": rewrites(12, 1, only_new=True)}
    sets |= {"old": embedded.rewrites(24, 0), "held_old": embedded.rewrites(12, 1)}
    for name, rows in sets.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    command = rewriter_command(work, small_system, tmp_path / "o")
    for flag, name in (("data", "tasks"), ("rehearsal", "old"), ("held-out", "held")):
        command += [f"--{flag}", f"jsonl:{tmp_path / name}.jsonl"]
    command += ["--held-out-old", f"jsonl:{tmp_path / 'held_old.jsonl'}", "--add-words"]
    command += ["--detector", str(work / "out" / "model"), "--device", "cpu", "--steps", "3"]
    command += ["--fact-analyzer", str(small_system / "fact_analyzer"), "--precision", "fp32"]
    assert main(command) == 0
    record = json.loads((tmp_path / "o" / "forgetting.json").read_text())
    assert list(record["measured"]["old"]) == ["copy", "before", "rehearsal", "lora", "plain"]
    assert list(record["measured"]["new"]) == ["copy", "rehearsal", "lora", "plain"]
    for rows in record["measured"].values():
        assert all(0 <= row["jsr"] <= 1 for row in rows.values())
    assert "| plain fine-tune on new tasks |" in (tmp_path / "o" / "forgetting.md").read_text()
    start, lora = (Rewriter.from_pretrained(tmp_path / "o" / way) for way in ("start", "lora"))
    size = len(Rewriter.from_pretrained(small_system / "rewriter").tokenizer)
    words = [r.model.get_input_embeddings().weight for r in (start, lora)]
    assert torch.equal(words[0][:size], words[1][:size]) and len(words[0]) > size
    assert (words[0][size:] - words[1][size:]).abs().max() > 0
    model, chosen = (
        Rewriter.from_pretrained(tmp_path / "o" / way).model.state_dict()
        for way in ("model", record["chosen"])
    )
    assert record["chosen"] in ("rehearsal", "lora")
    assert all(torch.equal(weight, chosen[name]) for name, weight in model.items())
    written = (tmp_path / "o" / "plain" / "model.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "o" / "plain" / "model.safetensors").stat().st_mtime_ns == written


def test_the_better_rewriter_is_chosen() -> None:
    def rows(before: float | None, rehearsal: float, lora: float) -> dict:
        rates = {"before": before, "rehearsal": rehearsal, "lora": lora}
        return {way: {"jsr": rate} for way, rate in rates.items() if rate is not None}

    both = ("rehearsal", "lora")
    measured = {"old": rows(0.90, 0.89, 0.95), "new": rows(None, 0.8, 0.7)}
    assert rewriter_choice(measured, both, 0.02) == "rehearsal"
    assert rewriter_choice(measured, both, 0.01) == "lora"
    measured["old"] = rows(0.90, 0.6, 0.5)
    assert rewriter_choice(measured, both, 0.02) == "rehearsal"


def test_an_analyzer_that_cannot_read_the_new_texts_is_told() -> None:
    def copies(old: float, new: float) -> dict:
        return {
            kind: {"copy": {"consistency_mean": mean}}
            for kind, mean in (("old", old), ("new", new))
        }

    assert analyzer_warning(copies(0.98, 0.95)) is None
    assert "cannot read the new texts" in str(analyzer_warning(copies(0.99, 0.27)))


def test_bad_input_of_a_rewriter_is_told(
    work: Path, small_system: Path, tmp_path: Path, complaint
) -> None:
    start = rewriter_command(work, small_system, tmp_path / "o")
    assert "--data is needed to train" in complaint(*start, "--rehearsal", "embedded:4")
    assert "--rehearsal: give tasks" in complaint(*start, "--held-out", "embedded:4")
    assert "--add-words takes its words" in complaint(*start, "--add-words")
    more = ("--data", "embedded:4", "--rehearsal", "embedded:4", "--held-out", "embedded:4")
    more += ("--held-out-old", "embedded:4", "--fact-analyzer", small_system / "fact_analyzer")
    assert "its values are not those of --space" in complaint(
        *start, *more, "--detector", work / "detector"
    )


def test_bad_input_is_told(work: Path, complaint, tmp_path: Path) -> None:
    again = command(work)
    assert "no such value space file" in complaint(*again, "--space", tmp_path / "none.json")
    assert "is not a detector folder" in complaint(*again, "--model", tmp_path)
    assert "--epochs must be at least 1" in complaint(*again, "--epochs", "0")
    assert "--reference" in complaint(
        *again, "--out", tmp_path / "o", "--reference", work / "detector"
    )
