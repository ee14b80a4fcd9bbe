"""Weights copied into vLLM in buckets: for partitioned parameters and models that share nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from visa_core.rollout.colocated.weight_map import Place

Bucket = list[tuple[str, torch.Tensor]]


def buckets(named: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> Iterator[Bucket]:
    """Group tensors in their order, each bucket at most `max_bytes` (a larger tensor alone).

    `named` is read lazily, so that gathered tensors live no longer than their bucket.
    """
    if max_bytes < 1:
        raise ValueError(f"a bucket needs at least 1 byte, got {max_bytes}")
    bucket: Bucket = []
    size = 0
    for name, tensor in named:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def distinct(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor under its first name: the other names of a tied weight need no copy."""
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


@torch.no_grad()
def copy_into_places(bucket: Bucket, places: dict[str, Place]) -> int:
    """Write a bucket straight into vLLM's tensors, one fused call; returns bytes written."""
    unknown = [name for name, _ in bucket if name not in places]
    if unknown:
        raise ValueError(f"vLLM's model has no place for {', '.join(unknown[:5])}")
    views = [places[name].view() for name, _ in bucket]
    torch._foreach_copy_(views, [tensor.to(views[0].device) for _, tensor in bucket])
    return sum(view.nbytes for view in views)


def copy_by_loader(bucket: Bucket, vllm_model: nn.Module) -> int:
    """Write a bucket through vLLM's own weight loader, for models whose names are not mapped."""
    load: Callable[[Any], Any] = vllm_model.load_weights  # type: ignore[assignment]
    with torch.no_grad():
        load(iter(bucket))
    return sum(tensor.nbytes for _, tensor in bucket)
