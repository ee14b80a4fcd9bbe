"""Where a rewrite should go: v* = clip(D(q, y) + T(I, q, y), -1, 1), or what a record says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from visa_core.types import RewriteExample
from visa_core.values import ValueSpace, clip_target


class Detects(Protocol):
    """Reads values off responses; a Detector is one."""

    def predict(self, queries: list[str], responses: list[str]) -> torch.Tensor: ...


class Translates(Protocol):
    """Reads the shift an instruction asks for; a Translator is one."""

    def predict(
        self, instructions: list[str], queries: list[str], responses: list[str]
    ) -> torch.Tensor: ...


def predicted_targets(
    examples: Sequence[RewriteExample],
    detector: Detects,
    translator: Translates | None,
    space: ValueSpace,
) -> torch.Tensor:
    """Targets [B, K] from the frozen detector and translator; without a translator from the
    records' shifts.

    Raises ValueError naming the record that has neither an instruction to translate nor a shift.
    """
    values = detector.predict([e.query for e in examples], [e.response for e in examples])
    if translator is None:
        return clip_target(values, recorded_shifts(examples, space))
    _refuse_missing(examples, [e.id for e in examples if not e.instruction.strip()], "instruction")
    shifts = translator.predict(
        [e.instruction for e in examples],
        [e.query for e in examples],
        [e.response for e in examples],
    )
    return clip_target(values, shifts)


def recorded_shifts(examples: Sequence[RewriteExample], space: ValueSpace) -> torch.Tensor:
    """Shifts [B, K] that the records carry."""
    _refuse_missing(examples, [e.id for e in examples if e.shift is None], "shift")
    return torch.stack([space.vector(e.shift or {}, limit=2.0) for e in examples])


def recorded_targets(examples: Sequence[RewriteExample], space: ValueSpace) -> torch.Tensor:
    """Targets [B, K] that the records carry: their target, else clip(values + shift)."""
    lacking = [e.id for e in examples if e.target is None and (e.values is None or e.shift is None)]
    _refuse_missing(examples, lacking, "target (nor values and shift)")
    rows = []
    for e in examples:
        if e.target is not None:
            rows.append(space.vector(e.target))
        else:
            rows.append(
                clip_target(space.vector(e.values or {}), space.vector(e.shift or {}, limit=2.0))
            )
    return torch.stack(rows)


def _refuse_missing(examples: Sequence[RewriteExample], lacking: list[str], what: str) -> None:
    if lacking:
        named = ", ".join(repr(i) for i in lacking[:3])
        raise ValueError(
            f"{len(lacking)} of {len(examples)} records have no {what}, the first: {named}"
        )
