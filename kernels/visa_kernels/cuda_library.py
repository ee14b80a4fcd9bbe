"""The CUDA kernels of csrc/cuda: one shared library, loaded by ctypes on first use.

Its functions take addresses, sizes and a stream, and return 0 or a cudaError_t. The library holds
the CUDA runtime in itself (linked statically), which shares the primary context with torch.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).with_name("_cuda.so")
SKIPPED_NOTE = Path(__file__).with_name("_cuda_skipped.txt")


@functools.cache
def library() -> ctypes.CDLL:
    """The library; OSError where it is missing or cannot be loaded."""
    found = ctypes.CDLL(str(PATH))
    found.visa_cuda_error.argtypes = [ctypes.c_int]
    found.visa_cuda_error.restype = ctypes.c_char_p
    return found


def why_no_cuda_library() -> str | None:
    """None where it can be loaded, otherwise why not; for `Backend.why_not`."""
    if not PATH.is_file():
        note = SKIPPED_NOTE.read_text("utf-8").strip() if SKIPPED_NOTE.is_file() else "not built"
        return f"the CUDA library visa_kernels/_cuda.so is missing: {note}"
    try:
        library()
    except (OSError, AttributeError) as error:
        return f"the CUDA library cannot be loaded: {error}"
    return None


@functools.cache
def function(name: str, *argument_types: Any) -> Any:
    """A launcher of the library: `function("visa_x", c_void_p, c_int64, ..., c_void_p)`."""
    found = getattr(library(), name)
    found.argtypes = list(argument_types)
    found.restype = ctypes.c_int
    return found


def launch(name: str, argument_types: tuple[Any, ...], device: torch.device, *args: Any) -> None:
    """Call a launcher with the device's current stream as last argument; raise what it reports.

    `argument_types` are those of `args`; the stream's, c_void_p, is added.
    """
    call = function(name, *argument_types, ctypes.c_void_p)
    with torch.cuda.device(device):
        code = call(*args, torch.cuda.current_stream(device).cuda_stream)
    if code:
        said = library().visa_cuda_error(code).decode()
        raise RuntimeError(f"{name} failed on {device}: {said} (CUDA error {code})")
