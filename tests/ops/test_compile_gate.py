"""Kernels build for every chip without spills; the gate itself sees a spill and a failure.

Every case is built, and for every chip, but not each case for each chip: that takes twice as long,
and VISA_GATE_ALL=1, or `python -m bench.compile_gate`, does it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compile_gate, resources
from bench.resources import Row
from visa_kernels import backend as backends

TRITON_MISSING = backends.why_no_triton()
needs_triton = pytest.mark.skipif(TRITON_MISSING is not None, reason=str(TRITON_MISSING))


@pytest.fixture(scope="module")
def rows(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """All builds, made in a process without Triton's interpreter."""
    out = tmp_path_factory.mktemp("gate") / "gate.json"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(str(repo / part) for part in ("", "kernels"))
    spread = [] if os.environ.get("VISA_GATE_ALL") else ["--spread"]
    command = [sys.executable, "-m", "bench.compile_gate", *spread, "--json", str(out)]
    done = subprocess.run(
        command, cwd=repo, env=env | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    print(done.stdout)
    assert out.is_file(), done.stdout + done.stderr
    return [Row(**row) for row in json.loads(out.read_text("utf-8"))["rows"]]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_triton
@pytest.mark.parametrize("target", compile_gate.TRITON_TARGETS)
def test_every_triton_kernel_builds_without_spills(rows: list[Row], target: str) -> None:
    built = [row for row in rows if row.kind == "triton" and row.target == target]
    assert {row.op for row in built} == {name.split(".")[1] for name in listing_modules()}
    assert [row for row in built if row.error or (row.spills or 0) > bytes_allowed(target)] == []
    assert all(row.registers and row.registers > 0 for row in built)


def bytes_allowed(target: str) -> int:
    """None may spill, but for a few bytes on some chips under Triton before 3.7."""
    old = tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 7)
    return 32 if old and target != "sm_90" else 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", compile_gate.CUDA_ARCHS)
def test_every_cuda_kernel_builds_without_spills(rows: list[Row], target: str) -> None:
    built = [row for row in rows if row.kind == "cuda" and row.target == target]
    if not built:
        pytest.skip("nvcc was not found")
    assert [row for row in built if row.failed()] == []


def test_every_op_with_a_triton_kernel_lists_its_configurations(repo: Path) -> None:
    folders = {p.parent.name for p in (repo / "kernels").glob("*/*/triton_kernel.py")}
    listed = {
        p.parent.name
        for p in (repo / "kernels").glob("*/*/triton_*.py")
        if "def compile_cases(" in p.read_text("utf-8")
    }
    assert folders - listed == set()


def listing_modules() -> list[str]:
    """Modules with compile cases, read from their text: kernels here are the interpreter's."""
    folder = Path(backends.__file__).parent
    paths = folder.glob("*/triton_*.py")
    found = (path for path in paths if "def compile_cases(" in path.read_text("utf-8"))
    return [f"visa_kernels.{path.parent.name}.{path.stem}" for path in found]


def test_spread_builds_every_case_and_every_chip() -> None:
    cases = [("x", None, {}, {}, 4, 3)] * 7
    chosen = [compile_gate.chips(case, index, True) for index, case in enumerate(cases)]
    assert all("sm_90" in chips and len(chips) == 2 for chips in chosen)
    assert {chip for chips in chosen for chip in chips} == set(compile_gate.TRITON_TARGETS)
    assert compile_gate.chips(cases[0], 0, False) == tuple(compile_gate.TRITON_TARGETS)
    own = (*cases[0], ("sm_90", "sm_100"))
    assert [compile_gate.chips(own, i, True) for i in range(2)] == [("sm_90",), ("sm_100",)]


PTXAS = """\
ptxas info    : Compiling entry function '_Z3sumPf' for 'sm_90a'
ptxas info    : Function properties for _Z3sumPf
    40 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_90a'
ptxas info    : Function properties for _Z4copyPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers
"""


def test_what_nvcc_says_is_read() -> None:
    assert resources.of_ptxas(PTXAS) == [
        ("_Z3sumPf", "sm_90a", 255, 1024, 28),
        ("_Z4copyPf", "sm_90a", 16, 0, 0),
    ]
    assert resources.of_amdgcn(".vgpr_count:     128\n.vgpr_spill_count: 3\n") == (128, 12)


def test_the_gate_fails_on_a_spill_and_on_an_error() -> None:
    about = {"op": "x", "kernel": "y", "kind": "cuda", "target": "sm_80"}
    assert Row(**about, registers=255, spills=28).failed()
    assert Row(**about, error="ptxas: no").failed()
    assert not Row(**about, registers=16, spills=0).failed()
    rows = list(compile_gate.cuda_rows(Path("x.cu"), "sm_90a", 0, PTXAS))
    assert [row.failed() for row in rows] == [True, False]
    assert list(compile_gate.cuda_rows(Path("x.cu"), "sm_90a", 2, "error: y"))[0].failed()


def test_the_gate_refuses_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert compile_gate.main([]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().out
