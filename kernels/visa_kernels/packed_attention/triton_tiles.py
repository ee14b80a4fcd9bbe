"""Tile sizes of the Triton attention kernels by head size, type and architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one kernel cuts its work."""

    block: int
    """Tokens that a program holds: queries in the forward and dq, keys in dkdv."""
    inner: int
    """Tokens of one step of its loop."""
    pad: int
    """Head size rounded up to a power of two."""
    warps: int
    stages: int


def pad_of(head_dim: int) -> int:
    """Smallest power of two that holds the head and that tl.dot takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def precision() -> str:
    """How fp32 operands are multiplied: as torch.set_float32_matmul_precision says."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def forward_tiling(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Tiles of `forward_kernel`."""
    return forward_table(pad_of(head_dim), dtype.itemsize, architecture(device))


def forward_table(pad: int, itemsize: int, arch: str) -> Tiling:
    """One row of the table: padded head size, bytes of an element, architecture."""
    if itemsize == 4:
        return Tiling(block=32, inner=32, pad=pad, warps=4, stages=2)
    return Tiling(block=128, inner=64, pad=pad, warps=8 if pad > 64 else 4, stages=3)


@cache
def architecture(device: torch.device) -> str:
    """sm_80, sm_90 ..., hip, or cpu (the interpreter)."""
    if device.type != "cuda":
        return "cpu"
    if torch.version.hip:
        return "hip"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def dq_tiling(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Tiles of `dq_kernel`."""
    return dq_table(pad_of(head_dim), dtype.itemsize, architecture(device))


def dq_table(pad: int, itemsize: int, arch: str) -> Tiling:
    """As `forward_table`."""
    if itemsize == 4:
        return Tiling(block=32, inner=32, pad=pad, warps=4, stages=2)
    return Tiling(block=128, inner=64, pad=pad, warps=8 if pad > 64 else 4, stages=2)


def dkdv_tiling(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Tiles of `dkdv_kernel`."""
    return dkdv_table(pad_of(head_dim), dtype.itemsize, architecture(device))


def dkdv_table(pad: int, itemsize: int, arch: str) -> Tiling:
    """As `forward_table`."""
    if itemsize == 4:
        return Tiling(block=32, inner=32, pad=pad, warps=4, stages=2)
    return Tiling(block=128, inner=64, pad=pad, warps=8, stages=2)


def head_splits(programs: int, heads_per_kv: int, device: torch.device) -> int:
    """Programs that share a key head's query heads: a divisor, doubled until two waves are full."""
    wanted = 2 * (multiprocessors(device) if device.type == "cuda" else 1)
    splits = 1
    while programs * splits < wanted and heads_per_kv % (2 * splits) == 0:
        splits *= 2
    return splits


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors or compute units."""
    return torch.cuda.get_device_properties(device).multi_processor_count
