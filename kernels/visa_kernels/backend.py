"""Which implementation of an op runs: chosen once per op and device, logged, never in silence.

Every op registers its implementations, best first. The first one that works on the device is used.
`backend="name"` on a call, or the environment variable VISA_BACKEND, asks for one by name; one that
is asked for and missing is an error. VISA_BACKEND holds a name for all ops (`reference`), or names
for some (`pack_to_budget=reference,grpo_loss=triton`).
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visa_kernels.cuda_library import why_no_cuda_library

log = logging.getLogger("visa_kernels")

ENVIRONMENT = "VISA_BACKEND"
SKIPPED_NOTE = Path(__file__).with_name("_extension_skipped.txt")


class BackendError(RuntimeError):
    """A backend was asked for that does not exist or cannot run here."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op."""

    name: str
    """What users write: reference, cpu, triton, cuda."""
    function: Callable[..., Any]
    """Takes the op's arguments; all backends of an op take the same ones."""
    devices: tuple[str, ...] | None = None
    """Device types it runs on; None for any."""
    dtypes: tuple[torch.dtype, ...] | None = None
    """Element types it takes; None for any. Others go to the next backend."""
    interpreter_devices: tuple[str, ...] = ()
    """Device types it runs on in triton's interpreter alone, and only when asked for by name."""
    why_not: Callable[[], str | None] = lambda: None
    """None where it can run, otherwise the reason it cannot, as a sentence for users."""


@dataclass(frozen=True, kw_only=True)
class ExtensionStatus:
    """Whether visa_kernels._C can be imported, and if not, why."""

    active: bool
    reason: str = ""

    def line(self) -> str:
        """One line for a terminal."""
        if self.active:
            return "extension visa_kernels._C: active"
        return f"extension visa_kernels._C: inactive, plain torch is used ({self.reason})"


_ops: dict[str, list[Backend]] = {}
_functions: dict[str, dict[str, Callable[..., Any]]] = {}
_chosen: dict[tuple[str, str, str, torch.dtype | None, str | None], str] = {}


def register(op: str, *backends: Backend) -> None:
    """Register the implementations of an op, best first; a `reference` must be among them."""
    assert any(backend.name == "reference" for backend in backends), op
    _ops[op] = list(backends)
    _functions[op] = {backend.name: backend.function for backend in backends}
    for key in [key for key in _chosen if key[0] == op]:
        del _chosen[key]


def registered() -> dict[str, list[Backend]]:
    """All ops and their implementations, for benchmarks and tests."""
    return {op: list(backends) for op, backends in _ops.items()}


def choose(
    op: str,
    device: str,
    backend: str | None = None,
    dtype: torch.dtype | None = None,
    leave_out: str | None = None,
) -> Callable[..., Any]:
    """The function that runs `op` on a device type ("cpu", "cuda") and, where given, a dtype.

    `leave_out` names a backend that cannot take this call: the next best is used, unless that one
    was asked for by name.

    Raises BackendError when `backend`, or VISA_BACKEND, names one that is unknown or cannot run.
    """
    return _functions[op][_name_of_choice(op, device, backend, dtype, leave_out)]


@torch.compiler.assume_constant_result
def _name_of_choice(
    op: str,
    device: str,
    backend: str | None,
    dtype: torch.dtype | None = None,
    leave_out: str | None = None,
) -> str:
    """Name of the backend to run; torch.compile takes it as a constant and does not trace this."""
    asked = backend or _asked_by_environment(op) or ""
    key = (op, device, asked, dtype, leave_out)
    if key not in _chosen:
        _chosen[key] = _pick(op, device, asked, dtype, leave_out).name
    return _chosen[key]


def _pick(
    op: str, device: str, asked: str, dtype: torch.dtype | None, leave_out: str | None
) -> Backend:
    """Look a backend up and log the choice; `asked` is empty when any will do."""
    where = device if dtype is None else f"{device}, {str(dtype).removeprefix('torch.')}"
    if asked:
        found = _pick_named(op, device, asked, dtype)
        log.info("%s on %s: backend %s (asked for)", op, where, found.name)
        return found
    passed_over = []
    for candidate in _ops[op]:
        if candidate.name == leave_out:
            passed_over.append(f"{candidate.name} does not take these arguments")
            continue
        reason = _unusable(candidate, device, dtype, by_name=False)
        if reason is None:
            note = f" ({'; '.join(passed_over)})" if passed_over else ""
            log.info("%s on %s: backend %s%s", op, where, candidate.name, note)
            return candidate
        passed_over.append(f"{candidate.name} not used: {reason}")
    raise BackendError(f"{op} has no backend for {where}: {'; '.join(passed_over)}")


def _pick_named(op: str, device: str, name: str, dtype: torch.dtype | None) -> Backend:
    names = [candidate.name for candidate in _ops[op]]
    if name not in names:
        raise BackendError(
            f"{op} has no backend {name!r}; it has {', '.join(names)}. To choose for some ops "
            f"only, set {ENVIRONMENT} to OP=NAME pairs, such as {op}={names[-1]}"
        )
    found = _ops[op][names.index(name)]
    reason = _unusable(found, device, dtype, by_name=True)
    if reason is not None:
        raise BackendError(f"backend {name!r} was asked for {op} but cannot run: {reason}")
    return found


def _unusable(
    candidate: Backend, device: str, dtype: torch.dtype | None, *, by_name: bool
) -> str | None:
    if device in candidate.interpreter_devices:
        if not by_name:
            return f"on {device} it is interpreted, so it must be asked for by name"
        if not triton_is_interpreted():
            return f"on {device} it needs triton's interpreter: set TRITON_INTERPRET=1 at the start"
    elif candidate.devices is not None and device not in candidate.devices:
        return f"it runs on {', '.join(candidate.devices)}, not on {device}"
    if dtype is not None and candidate.dtypes is not None and dtype not in candidate.dtypes:
        takes = ", ".join(str(known).removeprefix("torch.") for known in candidate.dtypes)
        return f"it takes {takes}, not {str(dtype).removeprefix('torch.')}"
    return candidate.why_not()


def triton_is_interpreted() -> bool:
    """Whether kernels defined from now on are interpreted; reads the variable as triton does."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _asked_by_environment(op: str) -> str | None:
    value = os.environ.get(ENVIRONMENT, "").strip()
    if "=" not in value:
        return value or None
    pairs = dict(part.strip().partition("=")[::2] for part in value.split(",") if part.strip())
    unknown = sorted(set(pairs) - set(_ops))
    if unknown:
        raise BackendError(
            f"{ENVIRONMENT} names no op of visa_kernels: {', '.join(unknown)}; "
            f"the ops are {', '.join(sorted(_ops))}"
        )
    return pairs.get(op)


def extension_status() -> ExtensionStatus:
    """Try to import the C++ extension; a reason from the build comes first where there is one."""
    try:
        importlib.import_module("visa_kernels._C")
    except ImportError as error:
        if SKIPPED_NOTE.is_file():
            return ExtensionStatus(active=False, reason=SKIPPED_NOTE.read_text("utf-8").strip())
        return ExtensionStatus(active=False, reason=str(error))
    return ExtensionStatus(active=True)


KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take as a rule; they compute in float32."""


def cpu_backend(function: Callable[..., Any], **fields: Any) -> Backend:
    """The `cpu` backend of an op: the C++ extension on CPU tensors."""
    settings = {"dtypes": KERNEL_DTYPES, "devices": ("cpu",), "why_not": why_no_extension}
    return Backend(name="cpu", function=function, **settings | fields)


def cuda_backend(function: Callable[..., Any], **fields: Any) -> Backend:
    """The `cuda` backend of an op: the library that nvcc built, on CUDA tensors."""
    settings = {"dtypes": KERNEL_DTYPES, "devices": ("cuda",), "why_not": why_no_cuda_library}
    return Backend(name="cuda", function=function, **settings | fields)


def triton_backend(function: Callable[..., Any], **fields: Any) -> Backend:
    """The `triton` backend of an op: CUDA tensors, and CPU tensors in the interpreter by name."""
    settings = {"dtypes": KERNEL_DTYPES, "devices": ("cuda",), "interpreter_devices": ("cpu",)}
    return Backend(
        name="triton", function=function, **settings | {"why_not": why_no_triton} | fields
    )


def why_no_triton() -> str | None:
    """None where triton can be imported, otherwise why not; for `Backend.why_not`."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    return None


def why_no_extension() -> str | None:
    """None where visa_kernels._C works, otherwise why not; for `Backend.why_not`."""
    status = extension_status()
    return None if status.active else status.reason
