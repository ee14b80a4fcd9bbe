"""What a built kernel takes: registers, shared memory, spills, read from what was built.

Spills are bytes per thread that go to memory: spill stores and loads (NVIDIA), or spilled vector
registers (AMD, whose scalar registers spill into vector registers, not into memory).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel built for one chip."""

    op: str
    kernel: str
    kind: str
    """triton or cuda."""
    target: str
    registers: int | None = None
    shared: int | None = None
    """Bytes of shared memory per block; what is sized at launch is not in it."""
    spills: int | None = None
    warps: int | None = None
    error: str | None = None

    def failed(self) -> bool:
        """Whether it could not be built, or spills."""
        return self.error is not None or bool(self.spills)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_cubin(cubin: bytes, ptx: str) -> tuple[int, int]:
    """(registers, spilled bytes) of a cubin that Triton made.

    cuobjdump tells the stack; only where there is one, ptxas is asked what of it are spills.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = _run(tool("cuobjdump"), "--dump-resource-usage", str(path))
    registers = [int(n) for n in re.findall(r"\bREG:(\d+)", text)]
    memory = sum(int(n) for n in re.findall(r"\b(?:STACK|LOCAL):(\d+)", text))
    if not registers:
        raise ValueError(f"cuobjdump told no registers: {text.strip()[:200]}")
    return max(registers), _spills_of_ptx(ptx) if memory else 0


def _spills_of_ptx(ptx: str) -> int:
    arch = re.search(r"^\.target\s+(sm_\w+)", ptx, re.MULTILINE)
    name = "ptxas-blackwell" if _is_packaged("ptxas-blackwell") else "ptxas"  # the newer of both
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = (tool(name), "-v", f"--gpu-name={arch[1] if arch else 'sm_80'}", str(source))
        return sum(spilled(_run(*command, "-o", str(out))))


def spilled(ptxas_text: str) -> list[int]:
    """Bytes of spill stores and loads of each kernel in the output of `ptxas -v`."""
    pattern = r"(\d+) bytes spill stores, (\d+) bytes spill loads"
    return [int(a) + int(b) for a, b in re.findall(pattern, ptxas_text)]


def of_ptxas(text: str) -> list[tuple[str, str, int, int, int]]:
    """(mangled name, chip, registers, shared bytes, spilled bytes) of each kernel that nvcc built.

    `text` is what `nvcc -Xptxas -v` prints.
    """
    parts = re.split(r"Compiling entry function '(\w+)' for '(sm_\w+)'", text)[1:]
    found = []
    for name, chip, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        registers = re.search(r"Used (\d+) registers", body)
        shared = re.search(r"(\d+) bytes smem", body)
        found.append(
            (
                name,
                chip,
                int(registers[1]) if registers else 0,
                int(shared[1]) if shared else 0,
                sum(spilled(body.split("Function properties")[1] if "Function" in body else body)),
            )
        )
    return found


def of_amdgcn(text: str) -> tuple[int, int]:
    """(vector registers, spilled bytes) of the AMD assembly that Triton made."""

    def field(name: str) -> int:
        return max((int(n) for n in re.findall(rf"\.{name}:\s+(\d+)", text)), default=0)

    return field("vgpr_count"), 4 * field("vgpr_spill_count")


def tool(name: str) -> str:
    """A tool of the CUDA toolkit: the one in the triton package, or on the path."""
    if _is_packaged(name):
        return str(_packaged(name))
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise FileNotFoundError(f"{name} is neither in the triton package nor on the path")
    return found


def _packaged(name: str) -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _is_packaged(name: str) -> bool:
    return _packaged(name).is_file()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-300:]
        raise RuntimeError(f"{Path(command[0]).name} gave {done.returncode}: {said}")
    return done.stdout + done.stderr
