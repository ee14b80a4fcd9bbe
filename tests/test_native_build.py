"""The native build: what is compiled how, when CUDA is built, and that wide code stays apart."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

from visa_kernels import backend as backends
from visa_kernels import cuda_library

OPENMP = re.compile(r"/lib[gi]?omp[-.\w]*so")
X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture
def build(repo: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of setup.py, run without building anything."""
    monkeypatch.chdir(repo)
    monkeypatch.setattr(setuptools, "setup", lambda **settings: None)
    for name in ("VISA_BUILD_CUDA", "VISA_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path("setup.py")


def replaced(build: dict[str, Any], name: str, **others: Any) -> Any:
    """A function of setup.py that sees other globals, such as another find_nvcc."""
    build[name].__globals__.update(others)
    return build[name]


@pytest.mark.skipif(not X86, reason="wider instruction sets are built on x86-64")
def test_simd_sources_are_compiled_for_every_instruction_set(build: dict[str, Any]) -> None:
    jobs = list(build["jobs"](["-fopenmp"]))
    for source in build["PER_ISA"]:
        assert [job.folder for job in jobs if job.source == source] == list(build["X86_ISAS"])
    for job in jobs:
        wide = {flag for flag in job.flags if flag.startswith("-mavx")}
        assert bool(wide) == (job.folder in ("avx2", "avx512"))
        assert not {"-ffast-math", "-ffinite-math-only", "-Ofast"} & set(job.flags)


def test_elsewhere_the_baseline_is_all_there_is(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    jobs = list(build["jobs"]([]))
    assert {job.folder for job in jobs} == {"once", "baseline"}
    assert not any("VISA_X86_LEVELS" in flag for job in jobs for flag in job.flags)


def test_when_the_cuda_library_is_built(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    why_not = replaced(
        build, "why_no_cuda", find_nvcc=lambda: "/bin/nvcc", native_archs=lambda: []
    )
    assert "no NVIDIA GPU was visible" in why_not()
    monkeypatch.setenv("VISA_BUILD_CUDA", "1")
    assert why_not() == ""
    monkeypatch.setenv("VISA_BUILD_CUDA", "0")
    assert "VISA_BUILD_CUDA=0" in why_not()
    monkeypatch.delenv("VISA_BUILD_CUDA")
    assert replaced(build, "why_no_cuda", native_archs=lambda: ["sm_90a"])() == ""
    assert "nvcc was not found" in replaced(build, "why_no_cuda", find_nvcc=lambda: None)()


def test_for_which_chips_it_is_built(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    archs = replaced(build, "cuda_archs", native_archs=lambda: [])
    assert archs() == ["sm_80", "sm_90a", "sm_100"]
    assert replaced(build, "cuda_archs", native_archs=lambda: ["sm_90a"])() == ["sm_90a"]
    monkeypatch.setenv("VISA_CUDA_ARCHS", "sm_80, sm_120")
    assert archs() == ["sm_80", "sm_120"]
    assert build["gencode"]("sm_90a") == "arch=compute_90a,code=sm_90a"


def test_a_missing_cuda_library_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "_cuda_skipped.txt"
    monkeypatch.setattr(cuda_library, "PATH", tmp_path / "_cuda.so")
    monkeypatch.setattr(cuda_library, "SKIPPED_NOTE", note)
    assert "not built" in (cuda_library.why_no_cuda_library() or "")
    note.write_text("nvcc was not found\n", encoding="utf-8")
    assert "nvcc was not found" in (cuda_library.why_no_cuda_library() or "")
    cuda_library.library.cache_clear()
    (tmp_path / "_cuda.so").write_bytes(b"not a library")
    assert "cannot be loaded" in (cuda_library.why_no_cuda_library() or "")
    cuda_library.library.cache_clear()


@pytest.mark.skipif(not X86 or shutil.which("objdump") is None, reason="needs x86-64 and objdump")
def test_wide_instructions_stay_in_their_namespaces() -> None:
    """One inline function that both a wide and a plain source use may carry AVX-512 everywhere."""
    if reason := backends.why_no_extension():
        pytest.skip(reason)
    from visa_kernels import _C

    text = subprocess.run(
        ["objdump", "-dC", "--no-show-raw-insn", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.split(r"^[0-9a-f]+ <(.+)>:$", text, flags=re.MULTILINE)[1:]
    wide = {
        name
        for name, body in zip(functions[::2], functions[1::2], strict=True)
        if re.search(r"%[yz]mm\d", body)
    }
    assert any("isa_avx512" in name for name in wide)
    assert {name for name in wide if "isa_avx" not in name} == set()


def test_the_extension_uses_the_openmp_of_torch(repo: Path) -> None:
    """Two OpenMP libraries would mean two pools of threads that fight for the cores.

    In a process of its own, since other packages bring theirs.
    """
    if reason := backends.why_no_extension():
        pytest.skip(reason)
    if not Path("/proc/self/maps").is_file():
        pytest.skip("no /proc/self/maps")
    code = (
        "import visa_kernels, torch\n"
        "x = visa_kernels.token_logprobs(torch.zeros(9000, 9), torch.zeros(9000).long())\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps')}, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(repo / "kernels")},
        capture_output=True,
        text=True,
        check=True,
    )
    pools = {os.path.realpath(name) for name in done.stdout.split() if OPENMP.search(name)}
    assert len(pools) == 1, pools
