"""Grouping of packed rows by common prompt: the C++ extension and plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.registry import Case, Op, Provider, register
from visa_kernels import backend as backends
from visa_kernels import group_prefixes

GROUP = 8


def case(count: int, prompt: int, completion: int) -> Case:
    """`count` rows, 8 of them on each prompt, one after another."""

    def build(device: str) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, 32_000, (count // GROUP, prompt)).repeat(GROUP, axis=0)
        completions = rng.integers(0, 32_000, (count, completion))
        return {
            "ids": np.concatenate([prompts, completions], axis=1).reshape(-1),
            "cu_seqlens": np.arange(count + 1) * (prompt + completion),
            "prefix_lengths": np.full(count, prompt),
        }

    name = f"{count} rows,{prompt}+{completion}"
    return Case(name=name, build=build, bytes_moved=8 * count * prompt)


def provider(name: str) -> Provider:
    def run(inputs: dict[str, Any]) -> tuple[np.ndarray, ...]:
        found = group_prefixes(**inputs, backend=name)
        return found.group_ids, found.order, found.cu_groups, found.shared

    return run


register(
    Op(
        name="group_prefixes",
        cases=(case(1024, 64, 64), case(4096, 512, 256)),
        providers={name: provider(name) for name in ("reference", "cpu")},
        devices=("cpu",),
        rtol=0.0,
        atol=0.0,
        why_not={"cpu": backends.why_no_extension},
        notes={"reference": "plain Python: a dict of prompts, from packed arrays"},
    )
)
