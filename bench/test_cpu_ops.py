"""pytest-benchmark entry of the CPU ops: `python -m pytest bench/test_cpu_ops.py`.

The smallest case of every op and provider, checked before it is timed. It lies outside of tests/,
so that `make test` does not time anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")

import bench.ops  # noqa: E402, F401  (registers the ops)
from bench import gate  # noqa: E402
from bench.registry import Inputs, Op, ops  # noqa: E402


def combinations() -> Iterator[Any]:
    """Op and provider for each pair that has a case on a CPU."""
    for op in ops():
        if "cpu" in op.devices:
            for name in op.providers:
                yield pytest.param(op, name, id=f"{op.name}-{name}")


def prepared(op: Op, provider: str, inputs: Inputs) -> Inputs:
    """Inputs in the form that a provider takes."""
    return op.prepare[provider](inputs) if provider in op.prepare else inputs


@pytest.mark.parametrize(("op", "provider"), list(combinations()))
def test_time(benchmark: Any, op: Op, provider: str) -> None:
    """One provider; groups of the report are ops."""
    cases = [case for case in op.cases if "cpu" in case.devices]
    case = min(cases, key=lambda each: each.bytes_moved + each.flops)
    reason = op.reason(provider, case, "cpu")
    if reason is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    inputs = case.build("cpu")
    own = prepared(op, provider, inputs)
    if op.exact is None:
        first = next(iter(op.providers))
        expected = op.providers[first](prepared(op, first, inputs))
        problem = gate.mismatch(op.providers[provider](own), expected, op)
    else:
        exact = op.exact(inputs)
        baseline = op.baseline_name()
        same_type = op.providers[baseline](prepared(op, baseline, inputs))
        allowed = gate.errors(same_type, exact)
        budget = op.budgets.get(provider, op.budget)
        problem, _ = gate.over_budget(op.providers[provider](own), allowed, exact, op, budget)
    assert problem is None
    benchmark.group = f"{op.name} {case.name}"
    benchmark(op.providers[provider], own)
