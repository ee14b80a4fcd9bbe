"""What is measured: per op its cases, and per case the providers that stand side by side.

A provider is any implementation of the op: each backend of visa_kernels, torch code as one would
write it, and other projects'. A case says what its inputs are and what the work costs, so that each
time is also a fraction of what the device could do.

How an op is entered (see bench/ops for examples):

    register(Op(
        name="token_logprobs",
        cases=(Case(name="T=4096,V=32000", build=build, bytes_moved=..., dtype="bfloat16"), ...),
        providers={"reference": ..., "eager": ..., "compile": ..., "cpu": ..., "triton": ...},
        exact=in_float64, baseline="eager", why_not={"cpu": why_no_extension},
    ))

Common provider names: reference, eager (torch as one would write it), compile (that under
torch.compile), cpu, triton, cuda (backends of visa_kernels), and peers by their names, which
bench/peers.py adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Inputs = dict[str, Any]

Build = Callable[[str], Inputs]
"""Makes the inputs of a case on a device ("cpu", "cuda")."""

Provider = Callable[[Inputs], Any]
"""Runs once on those inputs and returns what is checked: tensors, arrays, or tuples or dicts of
them, in the structure of the first provider's result."""

Prepare = Callable[[Inputs], Inputs]
"""Brings a case's inputs into the form that a provider takes; run once and not timed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size of an op."""

    name: str
    build: Build
    bytes_moved: int
    """Bytes that must be read and written at least once: the floor of memory-bound work."""
    flops: int = 0
    """Floating-point operations of the matrix products that the result needs: the other floor."""
    dtype: str = "float32"
    """Name of the inputs' torch dtype: `--dtype` chooses by it, and the rate of matrix products
    that `flops` is held against is measured in it."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where this size is measured, among the op's devices."""
    graph: bool = False
    """On a GPU, time it by replaying a CUDA graph over rotating inputs as well: for work so short
    that its launch would be timed instead. Providers must then not read back from the device."""
    headline: bool = False
    """Shown in the README's table, and run by `make gpu` before the other cases."""


@dataclass(frozen=True, kw_only=True)
class Op:
    """An op with its cases and providers; the first provider's results are the reference."""

    name: str
    cases: tuple[Case, ...]
    providers: dict[str, Provider]
    devices: tuple[str, ...] = ("cpu", "cuda")
    rtol: float = 1e-5
    atol: float = 1e-6
    """Without `exact`, results agree with the first provider's within these. With it they are the
    stated margin of the error budget."""
    why_not: dict[str, Callable[[], str | None]] = field(default_factory=dict)
    """Per provider, the reason it cannot run here, or None."""
    exact: Provider | None = None
    """The result in float64, from the same inputs. A provider passes when its error against this,
    root mean square and largest, is at most `budget` times that of the baseline (torch code in
    the case's dtype), plus atol + rtol * the largest magnitude. Returning None says
    that float64 is too much for this case: rtol and atol then decide."""
    budget: float = 2.0
    budgets: dict[str, float] = field(default_factory=dict)
    """Per provider, its own budget: for peers that round where same-dtype torch code does not. The
    report has every provider's error."""
    accepts: dict[str, Callable[[Any, Inputs], str | None]] = field(default_factory=dict)
    """Per provider whose result is another valid answer (a different packing, say), a check of it
    in place of the comparison: what is wrong, or None."""
    prepare: dict[str, Prepare] = field(default_factory=dict)
    """Per provider, how its inputs are brought into its own form, outside the timed part."""
    baseline: str | None = None
    """Provider whose time the others are given as multiples of; without it `eager` if there is
    one, otherwise the first."""
    notes: dict[str, str] = field(default_factory=dict)
    """Per provider, what exactly it computes where that differs from the op."""
    no_graph: dict[str, str] = field(default_factory=dict)
    """Per provider, why it cannot be captured in a CUDA graph: it reads back, say. A capture that
    fails can spoil what follows it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Per provider, the package whose code runs; tables name it with its version."""
    skip: Callable[[str, Case, str], str | None] = lambda provider, case, device: None
    """Reason to leave a provider out of one case on a device, or None."""

    def baseline_name(self) -> str:
        """The provider that the others are compared with."""
        if self.baseline is not None:
            return self.baseline
        return "eager" if "eager" in self.providers else next(iter(self.providers))

    def reason(self, provider: str, case: Case, device: str) -> str | None:
        """Why a provider is not run on a case, or None."""
        reason = self.why_not[provider]() if provider in self.why_not else None
        return reason or self.skip(provider, case, device)


_ops: dict[str, Op] = {}


def register(op: Op) -> None:
    """Add an op; its name is unique, and so are its cases' names."""
    if op.name in _ops:
        raise ValueError(f"op {op.name!r} is registered twice")
    names = [case.name for case in op.cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"op {op.name!r} has several cases named {', '.join(twice)}")
    _ops[op.name] = op


def extend(name: str, providers: Mapping[str, Provider], **fields: Mapping[str, Any]) -> None:
    """Add providers to a registered op, with their entries of `why_not`, `prepare`, `notes`, ..."""
    op = _ops[name]
    twice = sorted(set(providers) & set(op.providers))
    if twice:
        raise ValueError(f"op {name!r} has {', '.join(twice)} already")
    merged = {key: {**getattr(op, key), **value} for key, value in fields.items()}
    _ops[name] = replace(op, providers={**op.providers, **providers}, **merged)


def ops(names: tuple[str, ...] = ()) -> list[Op]:
    """The registered ops, or the named ones in that order."""
    unknown = sorted(set(names) - set(_ops))
    if unknown:
        raise ValueError(f"no op named {', '.join(unknown)}; there are {', '.join(sorted(_ops))}")
    return [_ops[name] for name in names] if names else list(_ops.values())
