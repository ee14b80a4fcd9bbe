"""What is measured: per op its cases, and per case the providers that stand side by side.

A provider is any implementation of the op: each backend of visa_kernels, and foreign ones to
compare with. A case says what its inputs are and what the work costs, so that each time is also a
fraction of what the device could do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Build = Callable[[str], dict[str, Any]]
"""Makes the inputs of a case on a device ("cpu", "cuda")."""

Provider = Callable[[dict[str, Any]], Any]
"""Runs once on those inputs and returns what is checked against the first provider's result."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size of an op."""

    name: str
    build: Build
    bytes_moved: int
    """Bytes that must be read and written at least once: the floor of memory-bound work."""
    flops: int = 0
    """Floating-point operations that the result needs."""


@dataclass(frozen=True, kw_only=True)
class Op:
    """An op with its cases and providers; the first provider is the reference."""

    name: str
    cases: tuple[Case, ...]
    providers: dict[str, Provider]
    devices: tuple[str, ...] = ("cpu", "cuda")
    rtol: float = 1e-5
    atol: float = 1e-6
    why_not: dict[str, Callable[[], str | None]] = field(default_factory=dict)
    """Per provider, the reason it cannot run here, or None."""


_ops: dict[str, Op] = {}


def register(op: Op) -> None:
    """Add an op; names are unique."""
    if op.name in _ops:
        raise ValueError(f"op {op.name!r} is registered twice")
    _ops[op.name] = op


def ops(names: tuple[str, ...] = ()) -> list[Op]:
    """The registered ops, or the named ones in that order."""
    unknown = sorted(set(names) - set(_ops))
    if unknown:
        raise ValueError(f"no op named {', '.join(unknown)}; there are {', '.join(sorted(_ops))}")
    return [_ops[name] for name in names] if names else list(_ops.values())
