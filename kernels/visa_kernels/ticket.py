"""Counters for kernels whose last program to finish reduces what all of them left in memory.

Every program adds one when its own part is written; the one that counts to the end does the rest
and sets the counter back to 0. So a whole op is one launch, and its sums have a fixed order. A
counter must not be shared by launches that may overlap: there is a set of them for each stream, and
one for each launch captured into a CUDA graph, which may be replayed on any stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 128
"""Counters of a set: a kernel may use some for parts of its programs."""
PAGE = 1024
"""Sets set aside for graphs at a time."""

_by_stream: dict[tuple[int, int], Tensor] = {}
_pages: dict[int, list[Tensor]] = {}
_in_graphs: list[Tensor] = []
"""Sets that graphs hold the addresses of: kept for as long as the process runs."""


def counters(device: torch.device) -> Tensor:
    """An int32 [SIZE] that holds 0, for one launch on the current stream of a device."""
    if device.type != "cuda":
        return torch.zeros(SIZE, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device)
    key = (stream.device_index, stream.cuda_stream)
    if torch.cuda.is_current_stream_capturing():
        return _slot(device, key[0])
    found = _by_stream.get(key)
    if found is None:
        found = _by_stream[key] = torch.zeros(SIZE, dtype=torch.int32, device=device)
        _pages.setdefault(key[0], []).extend(_page(device))
    return found


def _slot(device: torch.device, index: int) -> Tensor:
    """A set that no other launch has. Without a warm-up run, or when a page is used up, it
    comes from the graph's own memory, and is set to 0 by each replay."""
    free = _pages.get(index)
    if not free:
        return torch.zeros(SIZE, dtype=torch.int32, device=device)
    _in_graphs.append(free.pop())
    return _in_graphs[-1]


def _page(device: torch.device) -> list[Tensor]:
    return list(torch.zeros(PAGE * SIZE, dtype=torch.int32, device=device).split(SIZE))
