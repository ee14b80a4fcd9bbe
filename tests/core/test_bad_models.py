"""Model folders that cannot be used: the sentence names the folder and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests import tiny
from tests.tiny import grpo_command as grpo
from tests.tiny import sft_command as sft
from tests.tiny import write_lines

EXAMPLE = tiny.examples(4)[0]
FULL = ("--query", EXAMPLE.query, "--response", EXAMPLE.response, "--target", "security=1")
TASK = {key: value for key, value in asdict(EXAMPLE).items() if value is not None}

Complaint = Callable[..., str]


def without_tokenizer(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    for path in copy.glob("tokenizer*"):
        path.unlink()
    return copy


@pytest.mark.parametrize("settings", [False, True], ids=["bare", "with tokenizer_config"])
def test_rewriter_without_tokenizer(
    complaint: Complaint, small_system: Path, tmp_path: Path, settings: bool
) -> None:
    folder = without_tokenizer(small_system / "rewriter", tmp_path / "bare")
    if settings:
        shutil.copy(small_system / "rewriter/tokenizer_config.json", folder)
    said = complaint(*sft(folder, tmp_path / "o", "--data", "embedded:4"))
    assert f"{folder} has no tokenizer (none of tokenizer.json" in said


def test_rewriter_without_weights(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_system / "rewriter", tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    said = complaint(*sft(folder, tmp_path / "o", "--data", "embedded:4"))
    assert f"{folder} has no *.safetensors weights" in said


def test_rewriter_with_weights_of_another(
    complaint: Complaint, small_system: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small_system / "rewriter", tmp_path / "deeper")
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    (folder / "config.json").write_text(json.dumps(config))
    said = complaint(*sft(folder, tmp_path / "o", "--data", "embedded:4"))
    assert f"{folder}: its weights lack" in said and "layers.1" in said


def test_backbone_and_fact_analyzer_without_tokenizer(
    complaint: Complaint, small_system: Path, tmp_path: Path
) -> None:
    folder = without_tokenizer(small_system / "detector/encoder", tmp_path / "encoder")
    options = ("--data", "embedded:4", "--backbone", folder, "--out", tmp_path / "o")
    assert f"model folder {folder} has no tokenizer" in complaint("train", "detector", *options)
    folder = without_tokenizer(small_system / "fact_analyzer", tmp_path / "nli")
    tasks = write_lines(tmp_path / "tasks.jsonl", [TASK])
    said = complaint(*grpo(small_system, tasks, tmp_path / "o", "--fact-analyzer", folder))
    assert f"{folder} holds a model but no tokenizer" in said


def test_unclear_labels_of_a_fact_analyzer(
    complaint: Complaint, small_system: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small_system / "fact_analyzer", tmp_path / "nli")
    config = json.loads((folder / "config.json").read_text())
    names = [f"LABEL_{i}" for i in range(3)]
    config |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    tasks = write_lines(tmp_path / "tasks.jsonl", [TASK])
    said = complaint(*grpo(small_system, tasks, tmp_path / "o", "--fact-analyzer", folder))
    assert str(folder) in said and "LABEL_0" in said and "id2label" in said


def test_a_folder_of_another_part(complaint: Complaint, small_system: Path, tmp_path: Path) -> None:
    tasks = write_lines(tmp_path / "tasks.jsonl", [TASK])
    wrong = ("--detector", small_system / "translator")
    said = complaint(*grpo(small_system, tasks, tmp_path / "o", *wrong))
    assert "holds a model of type 'visa-translator', not a detector" in said


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("rewriter", "model.safetensors"),
        ("rewriter", "config.json"),
        ("detector", "heads.safetensors"),
        ("detector", "config.json"),
        ("detector", "encoder/model.safetensors"),
        ("fact_analyzer", "model.safetensors"),
    ],
)
def test_a_torn_model_file(
    complaint: Complaint, small_system: Path, tmp_path: Path, part: str, file: str
) -> None:
    folder = shutil.copytree(small_system, tmp_path / "system")
    path = folder / part / file
    path.write_bytes(path.read_bytes()[:50])
    said = complaint("rewrite", "--model", folder, *FULL)
    assert str(folder / part) in said and ("cannot be read" in said or "not a valid JSON" in said)
