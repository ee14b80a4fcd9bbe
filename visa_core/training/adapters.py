"""Low-rank adapters of the rewriter through peft: put on before training, merged in the result."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from visa_core.config.lora import LoraSettings
from visa_core.models.rewriter import Rewriter

ADAPTER = "adapter"
"""Folder of the adapter alone, inside the result."""


def put_adapter(rewriter: Rewriter, settings: LoraSettings, seed: int) -> None:
    """Wrap the rewriter's model so that only an adapter trains; nothing for rank 0.

    Raises ValueError where peft is missing or finds none of the named layers.
    """
    if not settings.rank:
        return
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("--lora.rank needs peft: pip install peft") from None
    wanted = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=list(settings.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    rewriter.model = get_peft_model(rewriter.model, wanted)  # type: ignore[assignment]
    rewriter.model.eval()


def write_adapted(rewriter: Rewriter, folder: Path) -> None:
    """Write the rewriter into an existing folder. An adapter is merged into the weights there, so
    that the folder loads as any other, and lies beside them in "adapter" for peft.
    """
    model = rewriter.model
    if not hasattr(model, "get_base_model"):
        rewriter.write(folder)
        return
    model.save_pretrained(folder / ADAPTER)
    rewriter.model = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    try:
        rewriter.write(folder)
    finally:
        rewriter.model = model
