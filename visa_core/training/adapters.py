"""Low-rank adapters of the rewriter through peft: put on before training, merged in the result."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
    size, first = len(rewriter.model.get_input_embeddings().weight), settings.new_tokens_from
    if first > size:
        raise ValueError(f"--lora.new-tokens-from {first}: the model has {size} tokens")
    wanted = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=list(settings.targets) or "all-linear",
        task_type="CAUSAL_LM",
        trainable_token_indices=list(range(first, size)) if 0 < first < size else None,
    )
    torch.manual_seed(seed)
    rewriter.model = get_peft_model(rewriter.model, wanted)  # type: ignore[assignment]
    rewriter.model.eval()


def write_adapted(
    rewriter: Rewriter, folder: Path, write: Callable[[Path], None] | None = None
) -> None:
    """Write the rewriter into an existing folder, by its own `write` unless another is given. An
    adapter is merged into the weights there, so that the folder loads as any other, and lies beside
    them in "adapter" for peft.
    """
    model, write = rewriter.model, write or rewriter.write
    if not hasattr(model, "get_base_model"):
        write(folder)
        return
    model.save_pretrained(folder / ADAPTER)
    rewriter.model = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    try:
        write(folder)
    finally:
        rewriter.model = model
