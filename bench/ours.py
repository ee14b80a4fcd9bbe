"""Backends of visa_kernels as providers: which exist, and why one cannot run on a device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.registry import Case
from visa_kernels import backend as backends

Skip = Callable[[str, Case, str], str | None]


def names(op: str) -> tuple[str, ...]:
    """Backends of an op that are kernels: all but the reference."""
    return tuple(found.name for found in backends.registered()[op] if found.name != "reference")


def skip(op: str) -> Skip:
    """For `Op.skip`: why a backend is left out of a case. Triton's interpreter is not timed."""
    known = {found.name: found for found in backends.registered()[op]}

    def reason(provider: str, case: Case, device: str) -> str | None:
        found = known.get(provider)
        if found is None:
            return None
        if found.devices is not None and device not in found.devices:
            return f"it runs on {', '.join(found.devices)}"
        dtype = getattr(torch, case.dtype)
        takes = getattr(found, "dtypes", None)  # other commits' backends may not say
        if takes is not None and dtype not in takes:
            return f"it does not take {case.dtype}"
        return found.why_not()

    return reason
