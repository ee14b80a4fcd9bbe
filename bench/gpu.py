"""`make gpu`: the tests of a GPU, then the benchmarks, from the tree, within a budget of time.

Works with the torch of the machine's image. What is missing there (pytest, a peer, a compiler) is
named and the rest goes on. The table comes last. Results go to bench/results/DEVICE, and into the
folder $OUT as well when that is set. GPU_WHEELS=DIR adds wheels of peers, unpacked beside the tree
and not installed. Without a GPU it says so and ends with status 0.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL, BUILD, TESTS, SPARE = 460, 150, 210, 25
"""Seconds: of everything, at most of the build, at most of the tests, and left for the table."""

USEFUL = ("pytest", "pytest_timeout", "xdist", "hypothesis", "numpy", "transformers", "matplotlib")


def main() -> int:
    """Build, test, measure, show; the first status that is not 0."""
    start = time.monotonic()
    reason = why_no_gpu()
    if reason is not None:
        print(f"make gpu: nothing to do, {reason}")
        return 0
    print_what_is_here()
    with tempfile.TemporaryDirectory() as unpacked:
        environment = tree_environment(unpack_wheels(Path(unpacked)))
        build(environment)
        failed = test(environment)
        left = TOTAL - SPARE - (time.monotonic() - start)
        out = results_folder()
        failed = measure(environment, out, left) or failed
    hand_over(out)
    show(out)
    print(f"make gpu: {time.monotonic() - start:.0f} s in all")
    return failed


def why_no_gpu() -> str | None:
    """Why there is no GPU to use, or None."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return None


def print_what_is_here() -> None:
    """Versions, and what is missing."""
    import torch

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {sys.version.split()[0]}")
    missing = [name for name in USEFUL if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing here, and done without: {', '.join(missing)}")


def unpack_wheels(folder: Path) -> Path | None:
    """Unpack the wheels of GPU_WHEELS into a folder, or None where none are given."""
    given = os.environ.get("GPU_WHEELS")
    if not given:
        return None
    wheels = sorted(Path(given).glob("*.whl"))
    if not wheels:
        print(f"GPU_WHEELS={given} holds no wheel")
        return None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run([*command, "--target", str(folder), *map(str, wheels)], dict(os.environ), 60)
    return folder


def tree_environment(extra: Path | None) -> dict[str, str]:
    """Environment in which this tree is imported, and extra packages behind it."""
    paths = [ROOT, ROOT / "kernels", ROOT / "trainers", *([extra] if extra else [])]
    others = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([*map(str, paths), *([others] if others else [])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def build(environment: dict[str, str]) -> None:
    """The extension and the CUDA library in place; without them the other backends are used."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    if run(command, environment, BUILD):
        print("extension not built: backends that need it report why")


def test(environment: dict[str, str]) -> int:
    """Tests marked gpu; a file that lacks a package is reported and fails, after all others."""
    if importlib.util.find_spec("pytest") is None:
        print("tests not run: pytest is missing")
        return 1
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "4", "--dist", "load"]
    status = run(command, environment, TESTS)
    nothing_selected = 5
    return 0 if status == nothing_selected else status


def results_folder() -> Path:
    """bench/results/DEVICE."""
    from bench import machine

    return ROOT / "bench" / "results" / machine.folder_name("cuda")


def measure(environment: dict[str, str], out: Path, left: float) -> int:
    """The benchmark, which starts no case when its time is nearly up."""
    budget = max(left - 30, 20)
    command = [sys.executable, "-m", "bench.run", "--device", "cuda", "--out", str(out)]
    command += ["--seconds", "0.2", "--min-rounds", "5", "--budget", f"{budget:.0f}"]
    return run(command, environment, left)


def run(command: list[str], environment: dict[str, str], seconds: float) -> int:
    """Status of a command from the tree's root; 124 when it ran out of time."""
    print("+", " ".join(command), flush=True)
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s")
        return 124


def hand_over(out: Path) -> None:
    """All results in one file, and the table, in the folder $OUT."""
    folder = os.environ.get("OUT")
    if not folder or not out.is_dir():
        return
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = sorted(out.glob("*.json"))
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    (target / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    archive = shutil.make_archive(str(target / "results"), "gztar", out.parent, out.name)
    print(f"-> {target / 'results.json'}, {archive}")


def show(out: Path) -> None:
    """The short table."""
    from bench import table

    print(table.terminal(table.load(out)))


if __name__ == "__main__":
    sys.exit(main())
