"""What the compile gate builds of the Triton attention kernels: the tile sizes of every chip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from visa_kernels.packed_attention import triton_backward, triton_kernel, triton_spans
from visa_kernels.packed_attention.triton_tiles import CHIPS, PADS, table

KERNELS = {
    "forward": (triton_kernel.forward_kernel, triton_kernel.PROMPT_FIELD),
    "dq": (triton_backward.dq_kernel, triton_kernel.PROMPT_FIELD),
    "dkdv": (triton_backward.dkdv_kernel, triton_backward.COMPLETIONS_FIELD),
}
TYPES = {"bf16": 2, "fp32": 4}
"""fp16 takes the same tiles and registers as bf16."""


def cases() -> Iterator[tuple[Any, ...]]:
    """(name, kernel, signature, constants, warps, stages, chips); see bench/compile_gate.py.

    With a shared prompt everywhere, which needs the most registers, and once without.
    """
    yield from _span_cases()
    for chip, targets in CHIPS.items():
        for kernel in KERNELS:
            for pad in PADS[1:]:
                yield _case(kernel, pad, "bf16", "ieee", True, chip, targets)
            for pad, dot in ((64, "ieee"), (128, "ieee"), (128, "tf32"), (256, "ieee")):
                yield _case(kernel, pad, "fp32", dot, True, chip, targets)
            yield _case(kernel, 64, "bf16", "ieee", False, chip, targets)


def _case(
    kernel: str, pad: int, dtype: str, dot: str, shared: bool, chip: str, targets: tuple[str, ...]
) -> tuple[Any, ...]:
    function, field = KERNELS[kernel]
    cut = table(kernel, pad, TYPES[dtype], chip)
    rows, columns = (cut.inner, cut.block) if kernel == "dkdv" else (cut.block, cut.inner)
    constants = {
        "HEAD": pad,
        "PAD": pad,
        "BLOCK_M": rows,
        "BLOCK_N": columns,
        "FIELD": field if shared else 0,
        "PRECISION": dot,
        "HOIST": cut.hoist,
    }
    constants = {name: constants[name] for name in function.arg_names if name in constants}
    signature = {name: _type(name, dtype) for name in function.arg_names if name not in constants}
    if not shared:
        signature["tiles_ptr"] = None
    what = f"{kernel} {pad} {dtype}" + (" tf32" if dot == "tf32" else "")
    name = f"{what} {rows}x{columns}" + ("" if shared else " packed")
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
