"""Proof on demand that vLLM and the trainer share one copy of the weights: `visa doctor --vllm`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visa_core.config.vllm import VLLMSettings
from visa_core.rollout.colocated import weight_map
from visa_core.rollout.colocated.engine import VLLMEngine
from visa_core.rollout.colocated.start import import_vllm, vllm_version
from visa_core.rollout.sampling import SamplingConfig
from visa_core.types import RolloutBatch

UPDATES = 20
PROMPT, COMPLETION, ROWS, GROUP = 24, 24, 4, 2
LIMITS = {torch.float32: 1e-4}
LOOSE_LIMIT = 0.25
"""Largest |dlogp| that counts as agreement: rounding, which grows with the model. In half
precision the two sides' kernels round differently at every layer."""


def prove(folder: Path, updates: int = UPDATES) -> dict[str, Any]:
    """Sample with vLLM, train with AdamW, sample again; compare both with the trained module.

    Returns counts and bytes, the largest differences of logprobs, seconds of a sync, `agrees`.
    Raises ValueError where the folder, vLLM or the model's kind does not allow it.
    """
    from visa_core.models.rewriter import Rewriter

    import_vllm()
    torch.manual_seed(0)
    rewriter = Rewriter.from_pretrained(folder, dtype=_dtype())
    model = rewriter.model.eval()
    settings = VLLMSettings(max_rows=ROWS * GROUP)
    engine = VLLMEngine(model, rewriter.stop_ids, settings, max_length=PROMPT + COMPLETION)
    prompts = torch.randint(0, model.config.vocab_size, (ROWS, PROMPT)).tolist()
    first, before = _gap(engine, model, prompts)
    _train(model, updates, engine)
    started = time.perf_counter()
    engine.weights_updated()
    sync_s = time.perf_counter() - started
    _, after = _gap(engine, model, prompts)
    moved = (_own_logprobs(model, prompts, first) - first.logprobs).abs().max()
    shared, copied = weight_map.shared_bytes(model.named_parameters(), engine.vllm_model)
    worst = max(before, after)
    dtype = next(model.parameters()).dtype
    found = {
        "model": str(folder),
        "vllm": vllm_version(),
        "device": str(next(model.parameters()).device),
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(1 for _ in model.parameters()),
        "shared_bytes": shared,
        "copied_bytes": copied,
        "updates": updates,
        "tokens_compared": 2 * len(first.tokens),
        "max_dlogp_before": before,
        "max_dlogp_after": after,
        "moved_by_updates": float(moved),
        "sync_seconds": sync_s,
        "agrees": copied == 0 and worst <= LIMITS.get(dtype, LOOSE_LIMIT),
    }
    engine.close()
    return found


def render(found: dict[str, Any]) -> str:
    """The proof as text for a terminal."""
    return "\n".join(
        [
            f"vLLM {found['vllm']} on {found['model']} ({found['device']}, {found['dtype']})",
            f"  parameters            {found['parameters']}, all in vLLM's tensors"
            if found["copied_bytes"] == 0
            else f"  parameters            {found['parameters']}",
            f"  shared                {found['shared_bytes']:,} bytes",
            f"  copied                {found['copied_bytes']:,} bytes",
            f"  max |dlogp| at start  {found['max_dlogp_before']:.2e}",
            f"  after {found['updates']} updates      {found['max_dlogp_after']:.2e}"
            f"  (they moved logprobs by up to {found['moved_by_updates']:.2f})",
            f"  sync                  {1e3 * found['sync_seconds']:.2f} ms",
            "one copy of the weights" if found["agrees"] else "vLLM and the trainer do not agree",
        ]
    )


def _dtype() -> torch.dtype | None:
    """fp32 where vLLM runs on the CPU; on a GPU the model's own, since attention kernels there
    take half precision.
    """
    from vllm.platforms import current_platform

    return torch.float32 if current_platform.is_cpu() else None


def _gap(
    engine: VLLMEngine, model: nn.Module, prompts: list[list[int]]
) -> tuple[RolloutBatch, float]:
    """A sampled batch and its largest difference to the trained module's own logprobs."""
    sampling = SamplingConfig(max_new_tokens=COMPLETION)
    rollouts = engine.generate(prompts, GROUP, sampling, seed=0)
    own_N = _own_logprobs(model, prompts, rollouts)
    return rollouts, float((own_N - rollouts.logprobs).abs().max())


@torch.no_grad()
def _own_logprobs(
    model: nn.Module, prompts: list[list[int]], rollouts: RolloutBatch
) -> torch.Tensor:
    """Logprobs [N] of the sampled tokens, each row read by itself by the trained module."""
    found = []
    for row, group in zip(rollouts.rows(), rollouts.group_ids.tolist(), strict=True):
        ids = torch.tensor([prompts[group] + row], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompts[group]) - 1 : -1]
        logprobs = logits.float().log_softmax(-1)
        found.append(logprobs.gather(1, ids[0, len(prompts[group]) :, None])[:, 0].cpu())
    return torch.cat(found)


def _train(model: nn.Module, updates: int, engine: VLLMEngine) -> None:
    """AdamW updates on random rows, with the KV cache's memory given back."""
    engine.release()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(updates):
        ids = torch.randint(0, model.config.vocab_size, (ROWS, PROMPT), device=model.device)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
