"""Measure the registered ops: `python -m bench.run [--op NAME ...] [--device cpu|cuda]`.

Each provider's result is checked first; where it is wrong no time is given and the run ends with
status 1. Providers take turns, so that ratios hold on a machine that others use too. Times are the
20th, 50th and 80th percentile. The floor is the time that the case's bytes take at the device's
copy bandwidth, or its matrix products at the rate of a plain GEMM, both measured in the same turns;
a case that fits into a cache can be faster than that.

`--base REF` measures another commit's kernels too, in turns with this tree's, and compares.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bench.ops  # noqa: F401  (registers the ops)
from bench import ceiling, machine, peers, timing
from bench.measure import Effort, Row, measure
from bench.registry import Case, Op, ops

RESULTS = Path(__file__).parent / "results"
MIN_RUNS, MAX_RUNS = 10, 1000
FORMAT = 2
"""Of the JSON. 2 added dtype, ratios to a baseline, memory and errors to each row."""


def main(arguments: list[str] | None = None) -> int:
    """Run, print a table, write one JSON per op; 1 where one of our providers was wrong."""
    options = parse(arguments)
    if options.base is not None:
        from bench import base

        return base.compare(options)
    peers.attach()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    where = machine.describe(options.device)
    if options.device == "cpu":
        where |= {"allocator": options.allocator, "clock": options.clock}
    bandwidth = copy_bandwidth(options.device)
    revision = machine.short(where["commit"])
    print(f"{where['device']}, copy {bandwidth / 1e9:.1f} GB/s, commit {revision}")
    where["copy_gb_per_s"] = round(bandwidth / 1e9, 2)
    return int(run_all(options, where))


def run_all(options: argparse.Namespace, where: dict[str, Any]) -> bool:
    """Headline cases of all ops first, so that they are had when time runs out; True if bad.

    An op's file is written after each of its cases: a run that is stopped leaves what it has.
    """
    stop = time.monotonic() + options.budget if options.budget else None
    selected = ops(tuple(options.op))
    rows: dict[str, list[Row]] = {op.name: [] for op in selected}
    pairs = [(op, case) for op in selected for case in chosen(op, options)]
    for op, case in sorted(pairs, key=lambda pair: not pair[1].headline):
        rows[op.name] += rows_of(op, case, options, stop)
        if rows[op.name]:
            write(options.out, op, rows[op.name], where)
    for op in selected:
        if not any(op is measured for measured, _ in pairs):
            print(f"{op.name}: no case for these options on {options.device}")
    print(f"-> {options.out}")
    return any(_ours_is_bad(row) for each in rows.values() for row in each)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", default=[], help="one op; may be repeated")
    parser.add_argument("--case", action="append", default=[], help="cases whose name has this")
    parser.add_argument("--provider", action="append", default=[], help="time these alone")
    parser.add_argument("--dtype", action="append", default=[], help="float32, bfloat16, ...")
    parser.add_argument("--headline", action="store_true", help="only the cases of the README")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--allocator",
        choices=("keep", "system"),
        default="keep",
        help="while times are taken on a CPU: keep freed pages in the process, or the system's way",
    )
    parser.add_argument(
        "--clock",
        choices=tuple(timing.CLOCKS),
        default="wall",
        help="on a CPU: time that passes, or this process's CPU time, for a busy machine",
    )
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="time spent per provider and case"
    )
    parser.add_argument("--min-rounds", type=int, help=f"per case (default {MIN_RUNS})")
    parser.add_argument("--budget", type=float, help="start no case after so many seconds")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: results/DEVICE)")
    parser.add_argument("--base", metavar="REF", help="compare with another commit")
    parser.add_argument("--base-rounds", type=int, default=3, help="turns of both commits")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    options.out = options.out or RESULTS / machine.folder_name(options.device)
    return options


def chosen(op: Op, options: argparse.Namespace) -> list[Case]:
    """Cases of an op that the options leave."""
    return [
        case
        for case in op.cases
        if options.device in op.devices
        and options.device in case.devices
        and (not options.case or any(part in case.name for part in options.case))
        and (not options.dtype or case.dtype in options.dtype)
        and (case.headline or not options.headline)
    ]


def rows_of(
    op: Op, case: Case, options: argparse.Namespace, stop: float | None = None
) -> list[Row]:
    """Measure and print one case, unless the run's time is spent."""
    if stop is not None and time.monotonic() > stop:
        print(f"{op.name:<18} {case.name:<24} not run: the time of --budget is spent")
        return []
    effort = Effort(
        device=options.device,
        seconds=options.seconds,
        least=options.min_rounds or MIN_RUNS,
        most=MAX_RUNS,
        providers=tuple(options.provider),
        clock=options.clock,
        keep_pages=options.device == "cpu" and options.allocator == "keep",
    )
    rows = measure(op, case, effort)
    for row in rows:
        print(line(row), flush=True)
    return rows


def _ours_is_bad(row: Row) -> bool:
    """A peer may be inexact, and may fail on a machine that is not its own; ours may not."""
    return ("failed" in row or "mismatch" in row) and row.get("package") in (None, "torch")


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a copy, read and write counted: the memory roof."""
    limit = ceiling.copy(device)
    times = timing.rounds({ceiling.COPY: limit.run}, device, 0.3, least=5, most=100)
    return limit.work / float(np.quantile(times[ceiling.COPY], 0.5))


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    head = f"{row['op']:<18} {row['case']:<24} {row['provider']:<12}"
    if "skipped" in row:
        return f"{head} not run: {row['skipped']}"
    if "failed" in row:
        return f"{head} FAILED: {row['failed']}"
    if "mismatch" in row:
        return f"{head} WRONG, no time given: {row['mismatch']}"
    parts = [f"{row['p50_ms']:10.4f} ms ({row['p20_ms']:.4f} to {row['p80_ms']:.4f})"]
    if "graph_p50_ms" in row:
        parts.append(f"graph {1e3 * row['graph_p50_ms']:8.2f} us")
    if "times_faster" in row:
        low, middle, high = row["times_faster"]
        parts.append(f"x{middle:.3g} of {row['baseline']} ({low:.3g} to {high:.3g})")
    parts.append(
        f"{row['tflop_per_s']:.3g} TFLOP/s" if row["tflop_per_s"] else f"{row['gb_per_s']} GB/s"
    )
    parts.append(f"{row['floor_fraction']:.1%} of the floor")
    if "peak_mib" in row:
        parts.append(f"peak {row['peak_mib']:.0f} MiB, scratch {row['scratch_mib']:.0f}")
    return f"{head} {'  '.join(parts)}"


def write(folder: Path, op: Op, rows: list[dict[str, Any]], where: dict[str, Any]) -> None:
    """One file per op, replaced by each run."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    result = {"format": FORMAT, "date": date, **where, "rows": rows}
    path = folder / f"{op.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    gc.freeze()  # what is imported by now need not be looked through before each measurement
    sys.exit(main())
