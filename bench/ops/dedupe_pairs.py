"""Deduplication of pairs: token rows, as scoring has them once they are tokenised, and texts.

A step of GRPO: 8 completions per prompt share their premise, and a quarter of the completions of a
prompt say the same. The reference gets token rows as lists of Python integers, not packed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.registry import Case, Inputs, Op, register
from visa_kernels import backend as backends
from visa_kernels import dedupe_pairs
from visa_kernels.dedupe_pairs.reference import unique_pairs

GROUP = 8


def rows(count: int, mean: int, dtype: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Premises and hypotheses of `count` pairs, each of mean/2 to 3/2 mean tokens."""
    rng = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return rng.integers(0, 32_000, rng.integers(mean // 2, mean * 3 // 2)).astype(dtype)

    premises = [row for _ in range(count // GROUP) for row in [draw()] * GROUP]
    hypotheses = [draw() for _ in range(count)]
    for index in np.flatnonzero(rng.random(count) < 0.25).tolist():
        hypotheses[index] = hypotheses[index - index % GROUP]
    return premises, hypotheses


def packed(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return np.concatenate(parts), ends


def of_tokens(count: int, mean: int, dtype: str) -> Case:
    def build(device: str) -> dict[str, Any]:
        return {"sides": [packed(side) for side in rows(count, mean, dtype)]}

    moved = 2 * count * mean * np.dtype(dtype).itemsize
    name = f"{count} pairs,{mean}+{mean} {dtype}"
    return Case(name=name, build=build, bytes_moved=moved, headline=count == 100_000)


def of_texts(count: int, characters: int) -> Case:
    def build(device: str) -> dict[str, Any]:
        premises, hypotheses = rows(count, characters // 2, "uint16")
        told = {id(row): row.tobytes().hex()[:characters] for row in premises + hypotheses}
        # A text that was decoded twice is two objects, as it is when a model writes it.
        return {"sides": [[told[id(row)] for row in premises],
                          [(told[id(row)] + " ")[:-1] for row in hypotheses]]}  # fmt: skip

    name = f"{count} texts,{characters}"
    return Case(name=name, build=build, bytes_moved=2 * count * characters)


def as_lists(inputs: Inputs) -> Inputs:
    """Token rows as lists of Python integers, one per row, as tokenizers return them."""
    if isinstance(inputs["sides"][0], list):
        return inputs
    sides = []
    for ids, ends in inputs["sides"]:
        flat = ids.tolist()
        sides.append([flat[a:b] for a, b in zip(ends.tolist(), ends[1:].tolist(), strict=False)])
    return {"sides": sides}


def plain(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    sides = inputs["sides"]
    if isinstance(sides[0][0], str):
        return unique_pairs(*sides)
    return unique_pairs(*[[tuple(row) for row in side] for side in sides])


register(
    Op(
        name="dedupe_pairs",
        cases=(
            of_tokens(100_000, 48, "int32"),
            of_tokens(4096, 256, "int64"),
            of_texts(4096, 180),
            of_texts(100_000, 180),
        ),
        providers={
            "reference": plain,
            "cpu": lambda inputs: tuple(dedupe_pairs(*inputs["sides"], backend="cpu")),
        },
        prepare={"reference": as_lists},
        devices=("cpu",),
        rtol=0.0,
        atol=0.0,
        why_not={"cpu": backends.why_no_extension},
        notes={
            "reference": "plain Python: a dict of pairs; texts have their hashes cached already"
        },
    )
)
