"""`make gpu-e2e`: a whole GRPO step on a GPU, from the tree, in less than eight minutes.

Works with the torch of the machine's image; a provider whose packages are missing there is named
and the rest is measured. GPU_WHEELS and OUT act as in `make gpu`. Without a GPU it says so and ends
with status 0. GPU_E2E="--case qwen3-4b" (or other options of `python -m bench.e2e`) measures more.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from bench import gpu

TOTAL, SPARE = 460, 40
"""Seconds: of everything, and left for what is not a provider's: the model folder, the picture."""
SUBSET = (
    *("--case", "qwen3-0.6b"),
    *("--providers", "ours-hf", "trl", "ours-vllm", "trl-vllm"),
    *("--steps", "3"),
)


def main() -> int:
    """Build, measure, draw; the first status that is not 0."""
    start = time.monotonic()
    reason = gpu.why_no_gpu()
    if reason is not None:
        print(f"make gpu-e2e: nothing to do, {reason}")
        return 0
    gpu.print_what_is_here()
    out = gpu.results_folder()
    with tempfile.TemporaryDirectory() as unpacked:
        environment = gpu.tree_environment(gpu.unpack_wheels(Path(unpacked)))
        gpu.build(environment)
        left = TOTAL - (time.monotonic() - start)
        failed = gpu.run(command(left - SPARE, out), environment, left)
        if importlib.util.find_spec("matplotlib") is not None and any(out.glob("e2e-*.json")):
            drawing = [sys.executable, "-m", "bench.e2e.picture", str(out)]
            gpu.run([*drawing, "--out", str(out / "e2e.png")], environment, SPARE)
    gpu.hand_over(out)
    print(f"make gpu-e2e: {time.monotonic() - start:.0f} s in all")
    return failed


def command(budget: float, out: Path) -> list[str]:
    """The benchmark of the subset, or of what GPU_E2E asks for."""
    given = shlex.split(os.environ.get("GPU_E2E", "")) or list(SUBSET)
    begun = [sys.executable, "-m", "bench.e2e", "--budget", f"{budget:.0f}", "--out", str(out)]
    return begun + given


if __name__ == "__main__":
    sys.exit(main())
