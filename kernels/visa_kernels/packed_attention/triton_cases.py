"""What the compile gate builds of the Triton attention kernels: the tile sizes of every chip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from visa_kernels.packed_attention import triton_backward, triton_kernel, triton_spans
from visa_kernels.packed_attention.triton_tiles import CHIPS, table

KERNELS = {
    "forward": (triton_kernel.forward_kernel, triton_kernel.PROMPT_FIELD),
    "dq": (triton_backward.dq_kernel, triton_kernel.PROMPT_FIELD),
    "dkdv": (triton_backward.dkdv_kernel, triton_backward.COMPLETIONS_FIELD),
}
TYPES = {"bf16": 2, "fp32": 4}
"""fp16 takes the same tiles and registers as bf16."""

HEADS = (("bf16", 32), ("bf16", 64), ("bf16", 128), ("fp32", 128))
"""Types and padded head sizes that are built each time; there are tiles up to 256."""


def cases() -> Iterator[tuple[Any, ...]]:
    """(name, kernel, signature, constants, warps, stages, chips); see bench/compile_gate.py.

    With a shared prompt, which needs the most registers.
    """
    yield from _span_cases()
    for chip, targets in CHIPS.items():
        for kernel in KERNELS:
            for dtype, pad in HEADS:
                yield _case(kernel, pad, dtype, chip, targets)


def _case(
    kernel: str, pad: int, dtype: str, chip: str, targets: tuple[str, ...]
) -> tuple[Any, ...]:
    function, field = KERNELS[kernel]
    cut = table(kernel, pad, TYPES[dtype], chip)
    rows, columns = (cut.inner, cut.block) if kernel == "dkdv" else (cut.block, cut.inner)
    constants = {
        "HEAD": pad,
        "PAD": pad,
        "BLOCK_M": rows,
        "BLOCK_N": columns,
        "FIELD": field,
        "PRECISION": "ieee",
        "HOIST": cut.hoist,
    }
    constants = {name: constants[name] for name in function.arg_names if name in constants}
    signature = {name: _type(name, dtype) for name in function.arg_names if name not in constants}
    name = f"{kernel} {pad} {dtype} {rows}x{columns}"
    return name, function, signature, constants, cut.warps, cut.stages, targets


def _type(name: str, dtype: str) -> str:
    if name in ("lse_ptr", "delta_ptr"):
        return "*fp32"
    if name in ("spans_ptr", "tiles_ptr"):
        return "*i32"
    if name.endswith("_ptr"):
        return f"*{dtype}"
    if name.startswith("scale"):
        return "fp32"
    is_stride = name.endswith(("_token", "_head"))
    return "i32:16" if is_stride else "i32"


def _span_cases() -> Iterator[tuple[Any, ...]]:
    numbers = dict.fromkeys(("n_tokens", "n_segments", "steps", "window"), "i32")
    signature = {"cu_ptr": "*i32", "spans_ptr": "*i32"} | numbers
    constants = {"CAUSAL": False, "WINDOWED": True, "BLOCK": triton_spans.INTERVAL_BLOCK}
    every = tuple(chip for chips in CHIPS.values() for chip in chips)
    yield "intervals", triton_spans.intervals_kernel, signature, constants, 4, 3, every
    numbers = dict.fromkeys(("n_slots", "n_groups", "steps"), "i32")
    signature = dict.fromkeys(("cu_ptr", "groups_ptr", "tiles_ptr"), "*i32") | numbers
    constants = {"TILE": 128, "BLOCK": triton_spans.INTERVAL_BLOCK}
    yield "tiles", triton_spans.tiles_kernel, signature, constants, 4, 3, every
