"""Packing of sequences: the C++ extension and plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.registry import Case, Op, Provider, register
from visa_kernels import backend as backends
from visa_kernels import pack_to_budget


def case(count: int) -> Case:
    """`count` sequences of 16 to 2,048 tokens, packed to 8,192."""

    def build(device: str) -> dict[str, Any]:
        return {"lengths": np.random.default_rng(0).integers(16, 2049, size=count), "budget": 8192}

    return Case(
        name=f"n={count}", build=build, bytes_moved=2 * 8 * count, headline=count == 100_000
    )


def provider(name: str) -> Provider:
    return lambda inputs: pack_to_budget(**inputs, backend=name)


register(
    Op(
        name="packing",
        cases=tuple(case(count) for count in (64, 1024, 16384, 100_000)),
        providers={name: provider(name) for name in ("reference", "cpu")},
        devices=("cpu",),
        rtol=0.0,
        atol=0.0,
        why_not={"cpu": backends.why_no_extension},
        notes={"reference": "plain Python, with numpy's sort"},
    )
)
