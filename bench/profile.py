"""Profile one provider: `python -m bench.profile OP [--case PART] [--provider NAME]`.

Writes a Chrome trace (open it in chrome://tracing or ui.perfetto.dev) and prints the operators that
take longest. On a GPU it also prints the Nsight Compute command that reads the counters of the same
call, and runs it with --counters.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import bench.ops  # noqa: F401  (registers the ops)
from bench import peers
from bench.registry import Case, Op, ops
from bench.timing import WARMUPS

CALLS = 3


def main(arguments: list[str] | None = None) -> int:
    """Trace, table, and counters where asked for."""
    options = parse(arguments)
    peers.attach()
    (op,) = ops((options.op,))
    case, name = pick(op, options)
    inputs = case.build(options.device)
    own = op.prepare[name](inputs) if name in op.prepare else inputs
    for _ in range(WARMUPS):
        op.providers[name](own)
    if options.once:
        return run_for_counters(op.providers[name], own)
    stem = re.sub(r"[^A-Za-z0-9.=]+", "-", f"{op.name}-{case.name}-{name}")
    options.out.mkdir(parents=True, exist_ok=True)
    trace(op, case, name, own, options, options.out / f"{stem}.trace.json.gz")
    if options.device == "cuda":
        return counters(options, case, name, options.out / stem)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op")
    parser.add_argument("--case", default="", help="first case whose name has this")
    parser.add_argument("--provider", help="default: the last one that can run here")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", type=Path, default=Path("visa-out/profile"))
    parser.add_argument("--counters", action="store_true", help="run Nsight Compute")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def pick(op: Op, options: argparse.Namespace) -> tuple[Case, str]:
    """Case and provider that were asked for; ValueError where there is none."""
    cases = [c for c in op.cases if options.device in c.devices and options.case in c.name]
    if not cases:
        raise ValueError(
            f"{op.name} has no case with {options.case!r} in its name on {options.device}; "
            f"it has {', '.join(case.name for case in op.cases)}"
        )
    reasons = {name: op.reason(name, cases[0], options.device) for name in op.providers}
    name = options.provider or [name for name, reason in reasons.items() if reason is None][-1]
    if name not in reasons:
        raise ValueError(f"{op.name} has no provider {name!r}; it has {', '.join(reasons)}")
    if reasons[name] is not None:
        raise ValueError(f"{name} cannot run here: {reasons[name]}")
    return cases[0], name


def trace(
    op: Op, case: Case, name: str, inputs: dict[str, Any], options: argparse.Namespace, path: Path
) -> None:
    """A few calls under torch's profiler."""
    on_gpu = options.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        for _ in range(CALLS):
            with record_function(f"{op.name} {case.name} {name}"):
                op.providers[name](inputs)
        if on_gpu:
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=48))
    print(f"{op.name} {case.name} {name}, {CALLS} calls -> {path}")


def counters(options: argparse.Namespace, case: Case, name: str, report: Path) -> int:
    """Print, or run, the Nsight Compute command of one call."""
    ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    command = [
        *[ncu or "ncu", "--profile-from-start", "off", "--set", "full", "--force-overwrite"],
        *["-o", str(report), sys.executable, "-m", "bench.profile", options.op, "--once"],
        *["--device", "cuda", "--case", case.name, "--provider", name],
    ]
    print("counters:", shlex.join(command))
    if ncu is None:
        print("ncu was not found; it comes with the CUDA toolkit (Nsight Compute)")
        return 0
    return subprocess.run(command).returncode if options.counters else 0


def run_for_counters(provider: Any, inputs: dict[str, Any]) -> int:
    """One call between the marks that Nsight Compute waits for."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    provider(inputs)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
