"""Whether a provider's result is right: without that it gets no time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.registry import Op


def leaves(result: Any, name: str = "result") -> dict[str, Any]:
    """Tensors, arrays and numbers of a nested result, by their place in it."""
    if result is None:
        return {}
    if isinstance(result, Mapping):
        parts = [(f"{name}.{key}", value) for key, value in result.items()]
    elif isinstance(result, list | tuple):
        parts = [(f"{name}[{index}]", value) for index, value in enumerate(result)]
    else:
        return {name: result}
    return {key: leaf for part, value in parts for key, leaf in leaves(value, part).items()}


def mismatch(got: Any, expected: Any, op: Op) -> str | None:
    """None where results agree within the op's rtol and atol, otherwise how they differ."""
    try:
        torch.testing.assert_close(got, expected, rtol=op.rtol, atol=op.atol, equal_nan=False)
    except AssertionError as error:
        return " ".join(str(error).split())
    return None


@dataclass(frozen=True, kw_only=True)
class Error:
    """Distance of one tensor from the exact one."""

    rms: float
    largest: float

    @classmethod
    def between(cls, got: Tensor, exact: Tensor) -> Error:
        """Chunk by chunk, so that no second copy in float64 is made."""
        total, largest = 0.0, 0.0
        pairs = zip(got.reshape(-1).split(2**24), exact.reshape(-1).split(2**24), strict=True)
        for part, wanted in pairs:
            off = (part.to(exact.device).double() - wanted.double()).abs_()
            off = torch.where(off.isnan(), torch.inf, off)
            off[part.to(exact.device) == wanted] = 0.0
            total += float(off.square().sum())
            largest = max(largest, float(off.amax()))
        return cls(rms=(total / max(got.numel(), 1)) ** 0.5, largest=largest)


def errors(got: Any, exact: Any) -> dict[str, Error]:
    """Error of every tensor of a result; ValueError where the two are not built alike."""
    have, want = leaves(got), leaves(exact)
    if have.keys() != want.keys():
        raise ValueError(f"parts {sorted(have)} where {sorted(want)} were expected")
    found = {}
    for name, exact_part in want.items():
        part, wanted = _tensor(have[name]), _tensor(exact_part)
        if part.shape != wanted.shape:
            raise ValueError(f"{name} is {tuple(part.shape)}, expected {tuple(wanted.shape)}")
        found[name] = Error.between(part, wanted) if part.numel() else Error(rms=0.0, largest=0.0)
    return found


def over_budget(
    got: Any, allowed: dict[str, Error], exact: Any, op: Op, budget: float
) -> tuple[str | None, dict[str, Any]]:
    """How a result misses the error budget, or None; and its errors for the report.

    Each tensor's error against `exact` may be `budget` times that of the same-dtype torch code
    (`allowed`), plus atol + rtol * the largest finite magnitude of the exact one.
    """
    try:
        found = errors(got, exact)
    except ValueError as problem:
        return str(problem), {}
    wants = leaves(exact)
    complaints, worst = [], 0.0
    for name, error in found.items():
        margin = op.atol + op.rtol * _magnitude(_tensor(wants[name]))
        for kind in ("rms", "largest"):
            have, limit = getattr(error, kind), budget * getattr(allowed[name], kind) + margin
            worst = max(worst, have / max(getattr(allowed[name], kind), margin, 1e-300))
            if not have <= limit:
                complaints.append(f"{name}: {kind} error {have:.3g}, at most {limit:.3g} allowed")
    report = {
        "rms": {name: float(f"{error.rms:.4g}") for name, error in found.items()},
        "largest": {name: float(f"{error.largest:.4g}") for name, error in found.items()},
        "times_torch": round(worst, 3),
    }
    return "; ".join(complaints) or None, report


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _magnitude(x: Tensor) -> float:
    if not x.numel():
        return 0.0
    return max(
        float(torch.where(part.isfinite(), part, 0).abs().amax())
        for part in x.double().reshape(-1).split(2**24)
    )
