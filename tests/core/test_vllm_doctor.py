"""`visa doctor --vllm MODEL` on real vLLM: bytes shared and copied, agreement after updates."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from tests import tiny
from tests.vllm_build import attach, needs_vllm
from visa_core.cli import main
from visa_core.models.rewriter import Rewriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained rewriter whose heads have a size that vLLM's attention on CPUs takes."""
    path = tmp_path_factory.mktemp("rewriter")
    small = Rewriter.small(tiny.texts(), hidden=64, layers=2, heads=2, intermediate=64)
    small.save_pretrained(path)
    return path


@needs_vllm
@pytest.mark.slow
def test_the_proof(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    attach()
    assert main(["doctor", "--vllm", str(folder), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    with safe_open(folder / "model.safetensors", "pt") as file:
        elements = sum(file.get_tensor(name).numel() for name in file.keys())
    assert found["shared_bytes"] == 4 * elements and found["copied_bytes"] == 0
    assert found["updates"] == 20 and found["vllm"] == importlib.import_module("vllm").__version__
    assert max(found["max_dlogp_before"], found["max_dlogp_after"]) <= 1e-5
    assert found["moved_by_updates"] > 1e-3, "the updates changed what is compared"


@needs_vllm
@pytest.mark.slow
def test_a_copy_is_no_proof(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are copied instead of shared: counted, found to differ, status 1."""
    attach()
    from visa_core.rollout.colocated import weight_copy, weight_map

    def copy(named: weight_map.Named, places: dict[str, weight_map.Place]) -> None:
        weight_copy.copy_into_places(list(weight_copy.distinct(named)), places)

    monkeypatch.setattr(weight_map, "share", copy)
    assert main(["doctor", "--vllm", str(folder)]) == 1
    said = capfd.readouterr().out
    assert "vLLM and the trainer do not agree" in said
    assert "shared                0 bytes" in said


def test_without_vllm_or_a_model(
    folder: Path, complaint: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "pip install 'visa-core[vllm]'" in complaint("doctor", "--vllm", folder)


@needs_vllm
def test_a_folder_that_is_no_model(complaint: Callable[..., str], tmp_path: Path) -> None:
    attach()
    assert "it has no config.json" in complaint("doctor", "--vllm", tmp_path)
