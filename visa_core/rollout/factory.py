"""The engine that a name stands for: hf, the trained module itself, or vllm in its process."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from visa_core.config.vllm import VLLMSettings
from visa_core.rollout.engine import Engine
from visa_core.rollout.hf import HFEngine

ENGINES = ("hf", "vllm")


def make_engine(
    name: str,
    model: nn.Module,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_length: int | None = None,
    vllm: VLLMSettings | None = None,
    keeps_storage: bool = True,
    eager: bool = False,
) -> Engine:
    """An engine over `model`, a Hugging Face causal LM or a peft model around one.

    For vllm the model must have its final dtype and device: its parameters become views of vLLM's
    tensors. max_length: longest prompt plus completion in tokens. keeps_storage: False where the
    trainer partitions the parameters; vLLM then has its own copy (`VLLMEngine.load_weights`).
    eager: the hf engine makes no CUDA graphs.
    """
    if name == "hf":
        return HFEngine(model, stop_ids, pad_id, eager=eager)
    if name == "vllm":
        from visa_core.rollout.colocated.engine import VLLMEngine

        return VLLMEngine(model, stop_ids, vllm, max_length=max_length, keeps_storage=keeps_storage)
    raise ValueError(f"--engine must be one of {', '.join(ENGINES)}, got {name!r}")
