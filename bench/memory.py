"""Peak memory that one call takes beyond what was in use before it.

On a GPU torch's allocator tells. On a CPU the kernel does: the highest resident set of this process
since its mark was reset, which counts C++ scratch and torch tensors alike. Free pages are handed
back first, so that a call cannot hide in memory that an earlier one left behind. Good to about a
megabyte.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gate import leaves

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one call; `scratch` is what it took besides the results it returned."""

    peak: int
    result: int

    @property
    def scratch(self) -> int:
        return max(self.peak - self.result, 0)


def of_call(run: Callable[[], Any], device: str) -> Memory | None:
    """Peak of one call beyond what was in use; None where the system does not tell."""
    measure = _on_gpu if device == "cuda" else _on_cpu
    return measure(run)


def _on_gpu(run: Callable[[], Any]) -> Memory:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return Memory(peak=peak, result=bytes_of(result))


def _on_cpu(run: Callable[[], Any]) -> Memory | None:
    if not RESET.exists():
        return None
    gc.collect()
    _hand_back_free_pages()
    RESET.write_text("5")
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM") - before
    return Memory(peak=max(peak, 0), result=bytes_of(result))


@contextmanager
def kept_pages(wanted: bool) -> Iterator[None]:
    """Within it, this process's allocator keeps what is freed, as jemalloc and tcmalloc do.

    glibc gives large blocks back to the system at once, so that every new tensor is paid for page
    by page: by how much depends on the system (on a virtual machine a page may have to come from
    its host, ten times slower than computing what goes into it) and changes from run to run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not wanted:
        yield
        return
    trim_threshold, most_mappings = -1, -4
    mallopt(trim_threshold, -1)
    mallopt(most_mappings, 0)
    try:
        yield
    finally:
        mallopt(trim_threshold, 2**17)
        mallopt(most_mappings, 2**16)
        _hand_back_free_pages()


def _hand_back_free_pages() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_peak() -> int | None:
    """Highest resident set since the mark was last reset; None where the system does not tell."""
    return _resident("VmHWM") if STATUS.exists() else None


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None, field
    return 1024 * int(found.group(1))


def bytes_of(result: Any) -> int:
    """Bytes of the tensors and arrays of a result; what two share is counted once."""
    sizes = {}
    for leaf in leaves(result).values():
        if isinstance(leaf, torch.Tensor):
            storage = leaf.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif hasattr(leaf, "nbytes"):
            sizes[id(leaf)] = int(leaf.nbytes)
    return sum(sizes.values())
