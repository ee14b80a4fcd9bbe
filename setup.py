"""Packages in three folders, an optional C++ extension and an optional CUDA library.

Everything declarative is in pyproject.toml. This file finds the packages (kernels/ and trainers/
are plain folders, never packages), compiles csrc/cpu into visa_kernels._C and csrc/cuda into
visa_kernels/_cuda.so. What cannot be built is left out: the install goes on, and the reason is
printed and kept in visa_kernels/_extension_skipped.txt or _cuda_skipped.txt, where `visa doctor`
finds it.

Sources are found by their folder. csrc/cpu/simd/*.cpp is compiled once per instruction set.
Environment: CC and CXX as usual; VISA_BUILD_CUDA=1 builds the CUDA library where no GPU is
visible, 0 never does; VISA_CUDA_ARCHS=sm_90a,sm_100 says for which chips ("native": this one's).
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

PACKAGE_DIR = {
    "visa_kernels": "kernels/visa_kernels",
    "visa_trainers": "trainers/visa_trainers",
}
ONCE = sorted(["csrc/bindings.cpp", *(p.as_posix() for p in Path("csrc/cpu").glob("*.cpp"))])
PER_ISA = sorted(p.as_posix() for p in Path("csrc/cpu/simd").glob("*.cpp"))
CUDA_SOURCES = sorted(Path("csrc/cuda").glob("*.cu"))
HEADERS = sorted(p for p in Path("csrc").rglob("*") if p.suffix in (".h", ".inl", ".cuh"))

CUDA_ARCHS = ("sm_80", "sm_90a", "sm_100")
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
# NaN and inf keep their meaning: no -ffinite-math-only, no -ffast-math.
SIMD_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86_ISAS = {"baseline": [], "avx2": AVX2, "avx512": AVX512}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One compilation: a source, and the folder under the build folder that its object goes to."""

    source: str
    flags: tuple[str, ...]
    folder: str


class OptionalBuildExt(build_ext):
    """build_ext that explains a failure and leaves the failed part out of the install."""

    def run(self) -> None:
        """Build what can be built; write, or clear, the notes that say why something was not."""
        self.reasons: list[str] = []
        super().run()
        self._write_note("_extension_skipped.txt", "\n".join(self.reasons))
        self._write_note("_cuda_skipped.txt", self._build_cuda())

    def build_extension(self, ext: Extension) -> None:
        """Compile the extension, with the include path of pybind11 found as late as possible."""
        try:
            import pybind11

            ext.include_dirs.append(pybind11.get_include())
            if self.compiler.compiler_type == "msvc":
                ext.extra_compile_args = ["/O2", "/std:c++17", "/EHsc"]
                ext.sources = [*ONCE, *PER_ISA]
                super().build_extension(ext)
            else:
                self._build_in_parallel(ext)
        except (ImportError, OSError, BaseError, CCompilerError) as error:
            # The full command line says nothing more than its first word to most readers.
            text = re.sub(r"\['([^']+)'.*\]", r"\1", str(error), flags=re.DOTALL)
            reason = f"{ext.name} was not built: {type(error).__name__}: {text}"
            print(f"visa-core: {reason}\nvisa-core: going on without it; plain torch is used.")
            self.reasons.append(reason)

    def _build_in_parallel(self, ext: Extension) -> None:
        """Compile every source for every instruction set, as many at a time as there are cores."""
        openmp = ["-fopenmp"] if self._compiles(["-fopenmp"]) else []
        with ThreadPoolExecutor(cores()) as pool:
            objects = list(pool.map(lambda job: self._compile(job, ext), jobs(openmp)))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=self.get_libraries(ext),
            extra_postargs=openmp,
            build_temp=self.build_temp,
            target_lang="c++",
        )

    def _compile(self, job: Job, ext: Extension) -> str:
        """Object of one source; kept from an earlier build where no file it may read is newer."""
        flags = [*ext.extra_compile_args, *job.flags]
        folder = Path(self.build_temp, job.folder)
        made = Path(folder, job.source).with_suffix(".o")
        stamp = made.with_suffix(".flags")
        newest = max(Path(p).stat().st_mtime for p in (job.source, *HEADERS))
        text = shlex.join([*self.compiler.compiler_so, *flags])
        if made.is_file() and made.stat().st_mtime > newest and read(stamp) == text:
            return str(made)
        (object_file,) = self.compiler.compile(
            [job.source],
            output_dir=str(folder),
            include_dirs=ext.include_dirs,
            extra_postargs=flags,
        )
        stamp.write_text(text, encoding="utf-8")
        return object_file

    def _compiles(self, flags: list[str]) -> bool:
        """Whether a program with these flags compiles and links: clang may lack its OpenMP."""
        code = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(code, encoding="utf-8")
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=flags
                )
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "probe.so")), extra_postargs=flags
                )
            except (BaseError, CCompilerError):
                return False
        return True

    def _build_cuda(self) -> str:
        """Build visa_kernels/_cuda.so where that is wanted; the reason why it was not, or ""."""
        target = self._package_folder() / "_cuda.so"
        reason = why_no_cuda()
        try:
            if not reason:
                build_cuda(target, Path(self.build_temp, "cuda"))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = f"nvcc failed: {getattr(error, 'output', None) or error}".strip()
        if reason:
            target.unlink(missing_ok=True)
            print(f"visa-core: no CUDA library: {reason}")
        return reason

    def _package_folder(self) -> Path:
        in_place = self.inplace or self.editable_mode
        return (Path("kernels") if in_place else Path(self.build_lib)) / "visa_kernels"

    def _write_note(self, name: str, text: str) -> None:
        note = self._package_folder() / name
        note.unlink(missing_ok=True)
        if text:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(text + "\n", encoding="utf-8")


def jobs(openmp: list[str]) -> Iterator[Job]:
    """All compilations of the extension; the slowest, pybind11's, first."""
    isas = X86_ISAS if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}
    levels = ["-DVISA_X86_LEVELS=1"] if len(isas) > 1 else []
    for source in sorted(ONCE, key=lambda name: "bindings" not in name):
        thin = ["-O1"] if "bindings" in source else []  # the last -O holds
        yield Job(source=source, flags=(*openmp, *levels, *thin), folder="once")
    for name, flags in isas.items():
        define = f"-DVISA_ISA_NAMESPACE=isa_{name}"
        for source in PER_ISA:
            every = (*openmp, *(() if openmp else ("-fopenmp-simd",)), *levels, *SIMD_FLAGS)
            yield Job(source=source, flags=(*every, *flags, define), folder=name)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def read(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, of the path, or of the usual folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [f"{home}/bin"] if home else []
    folders += [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def native_archs() -> list[str]:
    """Architectures of the GPUs that the driver shows, as nvcc names them; empty without any."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = {line.strip().replace(".", "") for line in done.stdout.splitlines()}
    return sorted("sm_90a" if cc == "90" else f"sm_{cc}" for cc in found if cc.isdigit())


def why_no_cuda() -> str:
    """Why the CUDA library is not to be built, or ""."""
    wanted = os.environ.get("VISA_BUILD_CUDA", "")
    if wanted == "0":
        return "not asked for (VISA_BUILD_CUDA=0)"
    if not CUDA_SOURCES:
        return "there are no CUDA sources"
    if find_nvcc() is None:
        return "nvcc was not found (looked in CUDA_HOME, PATH and /usr/local/cuda)"
    if not wanted and not native_archs():
        return "no NVIDIA GPU was visible at build time; VISA_BUILD_CUDA=1 builds it all the same"
    return ""


def cuda_archs() -> list[str]:
    """Architectures to build for: VISA_CUDA_ARCHS, this machine's, or the default ones."""
    asked = os.environ.get("VISA_CUDA_ARCHS", "")
    if asked and asked != "native":
        return [name.strip() for name in asked.split(",")]
    return native_archs() or list(CUDA_ARCHS)


def build_cuda(target: Path, folder: Path) -> None:
    """Compile csrc/cuda into one shared library; PTX of the newest chip is kept for later ones."""
    nvcc, archs = find_nvcc(), cuda_archs()
    chips = [flag for arch in archs for flag in ("-gencode", gencode(arch))]
    if len(archs) > 1:
        newest = max(archs, key=lambda name: int(re.sub(r"\D", "", name)))
        chips += ["-gencode", gencode(newest).replace("code=sm_", "code=compute_")]
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    common = [nvcc, "-O3", "-std=c++17", "-Icsrc", "-Xcompiler", "-fPIC,-fvisibility=hidden"]

    def compile_one(source: Path) -> str:
        made = folder / f"{source.stem}.o"
        run_nvcc([*common, *chips, "--threads", "0", "-c", str(source), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(cores()) as pool:
        objects = list(pool.map(compile_one, CUDA_SOURCES))
    run_nvcc([nvcc, "-shared", "-cudart", "static", *chips, *objects, "-o", str(target)])


def gencode(arch: str) -> str:
    return f"arch={arch.replace('sm_', 'compute_')},code={arch}"


def run_nvcc(command: list[str]) -> None:
    """Run nvcc; CalledProcessError holds what it said."""
    subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


extension = Extension(
    "visa_kernels._C",
    sources=ONCE,
    depends=[*PER_ISA, *(p.as_posix() for p in HEADERS)],
    include_dirs=["csrc"],
    language="c++",
    extra_compile_args=CXX_FLAGS,
    optional=True,
)

setup(
    packages=[
        *find_namespace_packages(".", include=["visa_core", "visa_core.*"]),
        *find_namespace_packages("kernels", include=["visa_kernels", "visa_kernels.*"]),
        *find_namespace_packages("trainers", include=["visa_trainers", "visa_trainers.*"]),
    ],
    package_dir=PACKAGE_DIR,
    ext_modules=[extension],
    cmdclass={"build_ext": OptionalBuildExt},
)
