"""Build every kernel for every chip, without one: `python -m bench.compile_gate [--op NAME ...]`.

Triton kernels come from each op's `compile_cases()`, with the tile sizes that the launchers use;
CUDA sources are all of csrc/cuda. Prints a table of registers, shared memory and spills, and ends
with status 1 where something failed to build or spills. What cannot be built here, for want of
triton or nvcc, is said and left out. Results are kept in build/compile_gate and Triton's own cache.
With --spread, half the builds: every case, and every chip, but not every case on every chip.

A case is (name, kernel, signature, constants, num_warps, num_stages) and, where its tile sizes are
those of some chips only, a tuple of their names. The signature maps argument names to Triton types
("*bf16", "i32", "fp32"); None is an argument passed as None. Pointers are taken as divisible by 16,
as torch's are; "i32:16" says so of a number.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import visa_kernels
from bench import resources
from bench.resources import Row

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "compile_gate"
TRITON_TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
CUDA_ARCHS = ("sm_80", "sm_90a", "sm_100")


def main(arguments: list[str] | None = None) -> int:
    """Build all, print the table; 1 where a kernel spills or was not built."""
    options = parse(arguments)
    if os.environ.get("TRITON_INTERPRET"):
        print("compile_gate: unset TRITON_INTERPRET: it makes kernels that cannot be compiled")
        return 2
    # Triton 3.9 warns where this is unset; kernels are built with what has been its default.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    rows, notes = [], []
    for build in (build_triton, build_cuda):
        found, note = build(options)
        rows += found
        notes += [note] if note else []
    print(table(rows))
    for note in notes:
        print(f"not built: {note}")
    if options.json:
        written = {"rows": [row.as_dict() for row in rows], "not_built": notes}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    failed = [row for row in rows if row.failed()]
    print(f"{len(rows)} builds, {len(failed)} failed or with spills")
    for row in failed:
        print(f"FAILED {row.op} {row.kernel} {row.target}: {row.error or f'spills {row.spills}'}")
    return int(bool(failed))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", default=[], help="one op; may be repeated")
    parser.add_argument(
        "--target", action="append", default=[], help=f"of {', '.join(TRITON_TARGETS)}, sm_90a"
    )
    parser.add_argument(
        "--spread", action="store_true", help="fewer builds: each case on sm_90 and one more chip"
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(arguments)


def modules() -> list[str]:
    """Modules of the ops that may list compile cases, by name."""
    prefix = f"{visa_kernels.__name__}."
    names = [m.name for m in pkgutil.walk_packages(visa_kernels.__path__, prefix)]
    return [name for name in names if name.rsplit(".", 1)[1].startswith("triton_")]


def cases(module: str) -> list[tuple[Any, ...]]:
    """What a module wants built; nothing where it lists nothing."""
    found = getattr(importlib.import_module(module), "compile_cases", None)
    return list(found()) if found else []


def chips(case: tuple[Any, ...], index: int, spread: bool) -> tuple[str, ...]:
    """Chips to build a case for; spread, the others take turns from case to case."""
    every = tuple(case[6] if len(case) > 6 else TRITON_TARGETS)
    if not spread:
        return every
    others = [chip for chip in every if chip != "sm_90"]
    if len(every) <= 2:
        return (every[index % len(every)],)
    return ("sm_90", others[index % len(others)])


def build_triton(options: argparse.Namespace) -> tuple[list[Row], str | None]:
    """Every Triton kernel for every chip, in as many processes as there are cores."""
    try:
        import triton
    except ImportError as error:
        return [], f"Triton kernels: {error}"
    listed = [
        (module, index, target)
        for module in modules()
        if not options.op or module.split(".")[1] in options.op
        for index, case in enumerate(cases(module))
        for target in chips(case, index, options.spread)
        if not options.target or target in options.target
    ]
    key = digest([*Path(visa_kernels.__file__).parent.rglob("triton_*.py")], triton.__version__)
    todo = [(*job, key) for job in listed]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        return list(pool.map(build_kept, todo, chunksize=2)), None


def build_kept(job: tuple[str, int, str, str]) -> Row:
    """One build, from an earlier run where the sources and triton are the same."""
    module, index, target, key = job
    path = KEPT / f"{key}-{module}-{index}-{target}.json"
    if path.is_file():
        return Row(**json.loads(path.read_text("utf-8")))
    row = build_one(module, index, target)
    if row.error is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row.as_dict()), encoding="utf-8")
    return row


def build_one(module: str, index: int, target: str) -> Row:
    """Build a case; an error of any kind becomes the row's."""
    name, function, signature, constants, warps, stages = cases(module)[index][:6]
    about = {"op": module.split(".")[1], "kernel": name, "kind": "triton", "target": target}
    try:
        built = compile_triton(function, signature, constants, warps, stages, target)
        if target.startswith("gfx"):
            registers, spills = resources.of_amdgcn(built.asm["amdgcn"])
        else:
            registers, spills = resources.of_cubin(built.asm["cubin"], built.asm["ptx"])
    except Exception as error:  # noqa: BLE001  (Triton raises many kinds; each is reported)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(**about, warps=warps, error=text[-400:])
    shared = built.metadata.shared
    return Row(**about, warps=warps, registers=registers, shared=shared, spills=spills)


def compile_triton(
    function: Any,
    signature: dict[str, str | None],
    constants: dict[str, Any],
    warps: int,
    stages: int,
    target: str,
) -> Any:
    """Triton's compiler ahead of time, for a chip that need not be here."""
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, attributes = {}, {}
    constants = dict(constants)
    for position, name in enumerate(function.arg_names):
        kind = None if name in constants else signature[name]
        if kind is None:
            types[name] = "constexpr"
            constants.setdefault(name, None)
            continue
        types[name], _, divisor = kind.partition(":")
        if kind.startswith("*") or divisor == "16":
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=types, constexprs=constants, attrs=attributes)
    return triton_compile(
        source,
        target=GPUTarget(*TRITON_TARGETS[target]),
        options={"num_warps": warps, "num_stages": stages},
    )


def build_cuda(options: argparse.Namespace) -> tuple[list[Row], str | None]:
    """Every CUDA source for every architecture."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return [], "CUDA sources: nvcc was not found"
    todo = [
        (source, arch)
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        for arch in CUDA_ARCHS
        if (not options.op or source.stem in options.op)
        and (not options.target or arch in options.target)
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        texts = list(pool.map(lambda job: nvcc_text(nvcc, *job), todo))
    rows = [row for job, text in zip(todo, texts, strict=True) for row in cuda_rows(*job, *text)]
    return rows, None


def nvcc_text(nvcc: str, source: Path, arch: str) -> tuple[int, str]:
    """Status and output of one build with `-Xptxas -v`, kept for the same sources and nvcc."""
    read = [source, *source.parent.glob("*.cuh"), *(ROOT / "csrc" / "cpu").glob("*.h")]
    path = KEPT / f"{digest(read, version(nvcc))}-{source.stem}-{arch}.txt"
    if path.is_file():
        return 0, path.read_text("utf-8")
    flags = ("-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", f"-arch={arch}", "-Xptxas", "-v")
    done = subprocess.run(
        [nvcc, *flags, "-cubin", "-o", os.devnull, str(source)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(done.stdout, encoding="utf-8")
    return done.returncode, done.stdout


def cuda_rows(source: Path, arch: str, status: int, text: str) -> Iterator[Row]:
    """A row for each kernel of a source; one with the error where it was not built."""
    about = {"op": source.stem, "kind": "cuda", "target": arch}
    if status:
        yield Row(**about, kernel="-", error=" ".join(text.split())[-400:])
    for name, _, registers, shared, spills in resources.of_ptxas(text):
        shown = readable(name)
        yield Row(**about, kernel=shown, registers=registers, shared=shared, spills=spills)


@functools.cache
def readable(name: str) -> str:
    """A C++ kernel's name without namespaces and arguments, as c++filt tells it."""
    if shutil.which("c++filt") is None:
        return name
    done = subprocess.run(["c++filt", "-p", name], capture_output=True, text=True, check=True)
    plain = done.stdout.strip().replace("(anonymous namespace)::", "").replace("visa::", "")
    return plain.replace("__nv_bfloat16", "bf16").replace("__half", "fp16")


@functools.cache
def version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def digest(paths: list[Path], *texts: str) -> str:
    """Hash of files and texts."""
    found = hashlib.sha256("\0".join(texts).encode())
    for path in sorted(paths):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def table(rows: list[Row]) -> str:
    """The rows for a terminal."""
    head = f"{'op':<24} {'kernel':<44} {'kind':<7} {'target':<7} {'warps':>5} {'regs':>5} "
    lines = [head + f"{'shared':>7} {'spills':>6}"]
    for row in sorted(rows, key=lambda r: (r.op, r.kind, r.kernel, r.target)):
        numbers = (row.warps, row.registers, row.shared, row.spills)
        warps, registers, shared, spills = ("-" if n is None else n for n in numbers)
        note = f"  {row.error[:80]}" if row.error else ""
        lines.append(
            f"{row.op:<24} {row.kernel[:44]:<44} {row.kind:<7} {row.target:<7} {warps:>5} "
            f"{registers:>5} {shared:>7} {spills:>6}{note}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
