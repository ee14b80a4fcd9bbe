"""GRPO with the vLLM engine beside the same run with the trained module as its own sampler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.trainers.test_grpo_faults import STEPS, figures, settings
from tests.vllm_build import attach, needs_vllm
from visa_core.config.grpo_parts import HeldOutSettings, ResampleSettings
from visa_core.config.lora import LoraSettings
from visa_core.config.vllm import VLLMSettings
from visa_core.models.rewriter import Rewriter
from visa_core.training import actor
from visa_trainers import grpo


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_samples_from_vllm_and_its_sampler_agrees_with_the_trained_weights(
    small_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """All weights trained, or an adapter of this rank that pulls to the base below it."""
    attach()
    tasks = tiny.write_tasks(tmp_path / "tasks.jsonl", n=6)
    words = Rewriter.from_pretrained(small_system / "rewriter").tokenizer.get_vocab()
    model = Rewriter.small(words, hidden=64, heads=2, max_prompt=160, max_completion=8)
    for name, weight in model.model.named_parameters():
        if "layers" in name and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)  # so that completions differ and some are better
    model.save_pretrained(tmp_path / "rewriter")
    out = tmp_path / "out"
    small = VLLMSettings(kv_cache_gib=0.05, max_rows=8)
    start = {"model": tmp_path / "rewriter", "engine": "vllm", "vllm": small}
    start["held_out"] = HeldOutSettings(data=(f"jsonl:{tasks}",), every=2, prompts=3)
    start["resample"] = ResampleSettings(below=1.0, tries=1)
    if rank:
        start |= {"lora": LoraSettings(rank=rank), "kl_beta": 0.01, "lr": 5e-2}
    monkeypatch.setattr(actor, "group_advantages", lambda r, **_: torch.linspace(-1, 1, len(r)))
    grpo.train(settings(small_system, tasks, out, **start))
    rows = figures(out)
    assert len(rows) == STEPS
    assert [row["step"] for row in rows if "eval_joint" in row] == [1, 3]
    assert max(row["max_abs_dlogp"] for row in rows) < 1e-3, "after updates of lr 5e-3, too"
    assert Rewriter.from_pretrained(out).model.num_parameters() > 0
    assert all(row["grad_norm"] > 0 for row in rows), "the weights must have moved"
