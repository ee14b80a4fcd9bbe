"""Tile sizes of the Triton attention kernels by head size, type and architecture.

Chosen so that no kernel spills registers on any chip of the compile gate; not yet tuned on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from visa_kernels.triton_version import OLD_TRITON


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one kernel cuts its work."""

    block: int
    """Tokens that a program holds: queries in the forward and dq, keys in dkdv."""
    inner: int
    """Tokens of one step of its loops."""
    warps: int
    stages: int
    hoist: bool = True
    """Whether what a loop does not change may be kept in registers instead of shared memory."""


CHIPS = {"sm_80": ("sm_80",), "sm_90": ("sm_90", "sm_100"), "hip": ("gfx942",)}
"""Rows of the table, and the chips of the compile gate that use them."""


def pad_of(head_dim: int) -> int:
    """Smallest power of two that holds the head and that tl.dot takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def precision() -> str:
    """How fp32 operands are multiplied: as torch.set_float32_matmul_precision says."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def tiling(kernel: str, head_dim: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Tiles of a kernel, "forward", "dq" or "dkdv"."""
    return table(kernel, pad_of(head_dim), dtype.itemsize, family(device))


def table(kernel: str, pad: int, itemsize: int, chip: str) -> Tiling:
    """One entry: padded head size, bytes of an element, row of CHIPS."""
    if itemsize == 4:
        return _in_fp32(kernel, pad, chip)
    if chip == "hip":
        return _on_amd(kernel, pad)
    if kernel == "forward":
        if pad > 128:
            return Tiling(block=64, inner=32, warps=8, stages=2)
        return Tiling(block=128, inner=64, warps=8 if pad > 64 else 4, stages=3)
    if kernel == "dq":
        if pad > 128:
            return Tiling(block=32, inner=32, warps=8, stages=2)
        narrow = pad > 64 and chip == "sm_80"
        return Tiling(block=64 if narrow else 128, inner=64, warps=8, stages=2)
    if pad > 128:
        return Tiling(block=32, inner=32, warps=8, stages=1, hoist=False)
    if pad > 64:
        return Tiling(block=64, inner=64, warps=8, stages=2, hoist=False)
    if pad > 32 and chip == "sm_80":
        return Tiling(block=128, inner=32, warps=8, stages=2, hoist=False)
    return Tiling(block=128, inner=64, warps=8, stages=2, hoist=False)


def _in_fp32(kernel: str, pad: int, chip: str) -> Tiling:
    """Products run without tensor cores, or with tf32: small tiles, little kept in registers."""
    if pad > 128:
        if kernel == "dkdv" and chip != "hip":
            return Tiling(block=32, inner=16, warps=8, stages=1)
        return Tiling(block=16, inner=16, warps=4, stages=1, hoist=False)
    if kernel == "forward":
        return Tiling(block=32, inner=32, warps=8, stages=1)
    if kernel == "dkdv" and chip == "sm_80":
        return Tiling(block=16, inner=32, warps=8, stages=1, hoist=False)
    if kernel == "dq" and pad > 64 and chip != "hip" and OLD_TRITON:
        return Tiling(block=16, inner=16, warps=8, stages=1, hoist=False)
    return Tiling(block=32, inner=16, warps=8, stages=1, hoist=False)


def _on_amd(kernel: str, pad: int) -> Tiling:
    """64 KiB of shared memory."""
    if kernel == "forward":
        if pad > 64:
            return Tiling(block=64, inner=32, warps=4, stages=1)
        return Tiling(block=128, inner=64, warps=4, stages=2)
    if kernel == "dq":
        if pad > 128:
            return Tiling(block=32, inner=16, warps=4, stages=1)
        return Tiling(block=64, inner=32 if pad > 64 else 64, warps=4, stages=1)
    if pad > 128:
        return Tiling(block=32, inner=16, warps=4, stages=1, hoist=False)
    return Tiling(block=64, inner=16 if pad > 64 else 32, warps=4, stages=1, hoist=False)


@cache
def family(device: torch.device) -> str:
    """Row of CHIPS; chips with little shared memory, and the interpreter, take that of sm_80."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "hip"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_90" if major in (9, 10, 11) else "sm_80"


def head_splits(programs: int, heads_per_kv: int, device: torch.device) -> int:
    """Programs that share a key head's query heads: a divisor, doubled until two waves are full."""
    wanted = 2 * multiprocessors(device) if device.type == "cuda" else 1
    splits = 1
    while programs * splits < wanted and heads_per_kv % (2 * splits) == 0:
        splits *= 2
    return splits


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors or compute units."""
    return torch.cuda.get_device_properties(device).multi_processor_count
