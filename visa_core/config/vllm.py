"""Settings of the vLLM engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VLLMSettings:
    """How vLLM runs inside the training process."""

    weights: Literal["views", "copy"] = "views"
    """views: the trained parameters are views of vLLM's tensors, one copy in all. copy: vLLM has
    its own copy, written in buckets after each update; for models that cannot be shared."""
    kv_cache_gib: float | None = None
    """Size of the KV cache in GiB. Without it: what gpu_memory allows on a GPU, 1 on a CPU."""
    gpu_memory: float = 0.3
    """Share of the GPU's memory that vLLM may take, weights included, when kv_cache_gib is not
    given."""
    max_rows: int = 256
    """Most completions sampled at the same time."""
    release_kv: bool = True
    """Give the KV cache's memory back while the model trains."""
    eager: bool = False
    """No CUDA graphs and no torch.compile: a faster start, slower sampling. Always so on a CPU."""
    bucket_mib: int = 256
    """Size of a bucket of weights when they are copied."""

    def __post_init__(self) -> None:
        if self.kv_cache_gib is not None and not self.kv_cache_gib > 0:
            raise ValueError(f"--vllm.kv-cache-gib must be above 0, got {self.kv_cache_gib}")
        if not 0 < self.gpu_memory <= 1:
            raise ValueError(f"--vllm.gpu-memory must lie in (0, 1], got {self.gpu_memory}")
        for name in ("max_rows", "bucket_mib"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--vllm.{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
