"""The KV cache's memory: given back while the model trains, taken again for the next rollout.

vLLM's own sleep levels unmap the weights too, which here are the trained parameters, so only the
allocations of the KV cache are touched. On a GPU they sit in vLLM's pool under the tag "kv_cache":
their pages are unmapped and later mapped again at the same addresses, so captured CUDA graphs stay
valid. Elsewhere the storage under vLLM's tensors is emptied and later grown again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

TAG = "kv_cache"


class KVMemory:
    """KV memory of one vLLM worker. pooled: it was allocated in vLLM's sleep-mode pool."""

    def __init__(self, worker: Any, pooled: bool) -> None:
        self.worker = worker
        self.pooled = pooled
        self.released = False
        self._sizes = {id(s): (s, s.nbytes()) for s in _storages(worker)}
        if not self._sizes:
            raise RuntimeError("vLLM's worker shows no KV cache: this vLLM version is not known")

    @property
    def nbytes(self) -> int:
        """Size of the cache while it is there."""
        return sum(size for _, size in self._sizes.values())

    def release(self) -> None:
        """Free the memory; what it held is lost, so the prefix cache must be reset as well."""
        if self.released:
            return
        if self.pooled:
            _discard_pooled(self.worker)
        else:
            for storage, _ in self._sizes.values():
                storage.resize_(0)
        self.released = True

    def retake(self) -> None:
        """Have the memory again, zeroed as vLLM first made it."""
        if not self.released:
            return
        if self.pooled:
            self.worker.wake_up(tags=[TAG])
        else:
            for storage, size in self._sizes.values():
                storage.resize_(size)
        for storage, _ in self._sizes.values():
            torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).zero_()
        self.released = False


def _storages(worker: Any) -> Iterator[torch.UntypedStorage]:
    """Storages under all KV tensors of the worker, each once."""
    runner = worker.model_runner
    layers = runner.vllm_config.compilation_config.static_forward_context.values()
    seen: set[int] = set()
    for held in [runner.kv_caches, *(getattr(layer, "kv_cache", None) for layer in layers)]:
        for tensor in _tensors(held):
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    """Tensors in what versions of vLLM keep: one, or lists of them."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, (list, tuple)):
        for item in held:
            yield from _tensors(item)


def _discard_pooled(worker: Any) -> None:
    """Unmap the pages of the KV cache alone. vLLM 0.26 has no call for that: its pool is asked."""
    if hasattr(worker, "discard"):
        worker.discard((TAG,))
        return
    from vllm.device_allocator import cumem

    torch.cuda.synchronize()
    for data in cumem.CuMemAllocator.get_instance().pointer_to_data.values():
        if data.tag == TAG and not data.is_asleep:
            cumem.unmap_and_release(data.handle)
            data.is_asleep = True
