"""Measure the registered ops: `python -m bench.run [--op NAME ...] [--device cpu|cuda]`.

Each provider's result is compared with the reference's first; where it differs no time is given and
the run ends with status 1. Times are the 20th, 50th and 80th percentile. The floor is the time that
the case's bytes take at the device's copy bandwidth, which is measured in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bench.ops  # noqa: F401  (registers the ops)
from bench import machine
from bench.registry import Case, Op, ops

RESULTS = Path(__file__).parent / "results"
MIN_RUNS, MAX_RUNS = 10, 1000


def main(arguments: list[str] | None = None) -> int:
    """Run, print a table, write one JSON per op; 1 where a provider was wrong."""
    options = parse(arguments)
    torch.manual_seed(0)
    where = machine.describe(options.device)
    bandwidth = copy_bandwidth(options.device)
    print(f"{where['device']}, copy {bandwidth / 1e9:.1f} GB/s, commit {where['commit'][:12]}")
    wrong = False
    for op in ops(tuple(options.op)):
        if options.device not in op.devices:
            print(f"{op.name}: not for {options.device}")
            continue
        rows = [row for case in op.cases for row in measure(op, case, options, bandwidth)]
        wrong |= any("mismatch" in row for row in rows)
        for row in rows:
            print(line(row))
        write(options.out, op, rows, where | {"copy_gb_per_s": round(bandwidth / 1e9, 2)})
    return int(wrong)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", default=[], help="one op; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent per provider")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: results/DEVICE)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    options.out = options.out or RESULTS / machine.folder_name(options.device)
    return options


def measure(
    op: Op, case: Case, options: argparse.Namespace, bandwidth: float
) -> list[dict[str, Any]]:
    """One row per provider of a case."""
    inputs = case.build(options.device)
    expected = None
    rows = []
    for name, provider in op.providers.items():
        row: dict[str, Any] = {"op": op.name, "case": case.name, "provider": name}
        rows.append(row)
        reason = op.why_not[name]() if name in op.why_not else None
        if reason is not None:
            row["skipped"] = reason
            continue
        got = provider(inputs)
        expected = got if expected is None else expected
        difference = mismatch(got, expected, op)
        if difference is not None:
            row["mismatch"] = difference
            continue
        times = time_it(lambda run=provider: run(inputs), options.device, options.seconds)
        row |= summary(times, case, bandwidth)
    return rows


def mismatch(got: Any, expected: Any, op: Op) -> str | None:
    """None where results agree within the op's tolerances, otherwise how they differ."""
    try:
        torch.testing.assert_close(
            got, expected, rtol=op.rtol, atol=op.atol, equal_nan=False
        )
    except AssertionError as error:
        return " ".join(str(error).split())
    return None


def time_it(function: Callable[[], Any], device: str, seconds: float) -> list[float]:
    """Seconds of each run after three runs to warm up; on a GPU by events, so that queues fill."""
    for _ in range(3):
        function()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or (time.perf_counter() < stop and len(times) < MAX_RUNS):
        times.append(_one_on_gpu(function) if device == "cuda" else _one_on_cpu(function))
    return times


def _one_on_cpu(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _one_on_gpu(function: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a copy of 256 MiB, read and write counted: the memory roof."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    times = time_it(lambda: target.copy_(source), device, 0.3)
    return 2 * source.nbytes / float(np.quantile(times, 0.5))


def summary(times: list[float], case: Case, bandwidth: float) -> dict[str, Any]:
    """Percentiles in milliseconds, rates, and the share of the floor."""
    p20, p50, p80 = (float(q) for q in np.quantile(times, [0.2, 0.5, 0.8]))
    return {
        "runs": len(times),
        "p20_ms": round(p20 * 1e3, 5),
        "p50_ms": round(p50 * 1e3, 5),
        "p80_ms": round(p80 * 1e3, 5),
        "gb_per_s": round(case.bytes_moved / p50 / 1e9, 3),
        "tflop_per_s": round(case.flops / p50 / 1e12, 4) if case.flops else None,
        "floor_fraction": round(case.bytes_moved / bandwidth / p50, 5),
    }


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    head = f"{row['op']:<18} {row['case']:<18} {row['provider']:<10}"
    if "skipped" in row:
        return f"{head} not run: {row['skipped']}"
    if "mismatch" in row:
        return f"{head} WRONG, no time given: {row['mismatch']}"
    return (
        f"{head} p20 {row['p20_ms']:9.4f}  p50 {row['p50_ms']:9.4f}  p80 {row['p80_ms']:9.4f} ms"
        f"  {row['gb_per_s']:8.2f} GB/s  {row['floor_fraction']:.1%} of the floor"
    )


def write(folder: Path, op: Op, rows: list[dict[str, Any]], where: dict[str, Any]) -> None:
    """One file per op, replaced by each run."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    result = {"date": date, **where, "rows": rows}
    path = folder / f"{op.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"  -> {path}")


if __name__ == "__main__":
    sys.exit(main())
