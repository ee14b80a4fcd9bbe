"""One case of an op: gate, memory, times in turns, and what they come to."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import ceiling, gate, memory, timing
from bench.registry import Case, Op

Row = dict[str, Any]

GRAPH_INPUTS = 256
"""At most this many input sets are rotated through in one CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure, and what."""

    device: str
    seconds: float = 0.5
    """Per provider and case."""
    least: int = 10
    most: int = 1000
    """Rounds."""
    providers: tuple[str, ...] = ()
    """Names to time; empty for all."""
    clock: str = "wall"
    """Of a CPU's times: a name of `timing.CLOCKS`."""
    keep_pages: bool = False
    """Take times with an allocator that keeps what is freed; memory is measured without."""


def measure(op: Op, case: Case, effort: Effort) -> list[Row]:
    """One row per provider: its times, or why it has none."""
    inputs = case.build(effort.device)
    rows = {name: _row(op, case, name) for name in op.providers}
    for name, row in rows.items():
        reason = op.reason(name, case, effort.device)
        if reason is None and effort.providers and name not in effort.providers:
            reason = "not asked for"
        if reason is not None:
            row["skipped"] = reason
    runs = {
        name: _runnable(op, name, inputs) for name, row in rows.items() if "skipped" not in row
    }
    _pass_gate(op, case, effort, inputs, runs, rows)
    for name, run in runs.items():
        _add_memory(rows[name], run, effort.device)
    _add_times(op, case, effort, runs, rows)
    if case.graph and effort.device == "cuda":
        _add_graph_times(op, case, effort, list(runs), rows)
    return [row for row in rows.values() if row.get("skipped") != "not asked for"]


def _row(op: Op, case: Case, name: str) -> Row:
    row: Row = {"op": op.name, "case": case.name, "provider": name, "dtype": case.dtype}
    if case.headline:
        row["headline"] = True
    if name in op.notes:
        row["note"] = op.notes[name]
    if name in op.versions:
        row["package"] = op.versions[name]
    return row


def _runnable(op: Op, name: str, inputs: dict[str, Any]) -> timing.Run:
    """The provider on inputs in its own form; `prepare` runs here, once."""
    own = op.prepare[name](inputs) if name in op.prepare else inputs
    provider = op.providers[name]
    return lambda: provider(own)


def _pass_gate(
    op: Op,
    case: Case,
    effort: Effort,
    inputs: dict[str, Any],
    runs: dict[str, timing.Run],
    rows: dict[str, Row],
) -> None:
    """Drop from `runs` what is wrong or fails, and note it in its row."""
    first = next(iter(op.providers))
    yardstick = op.baseline_name()
    expected = _call(first, runs, op, inputs, rows)
    if "failed" in rows[first]:
        for name in list(runs):
            rows[name]["failed"] = f"nothing to check it against: {first} failed"
            del runs[name]
        return
    exact = op.exact(inputs) if op.exact is not None else None
    allowed: dict[str, gate.Error] = {}
    if exact is not None:
        measured = expected if yardstick == first else _call(yardstick, runs, op, inputs, rows)
        allowed = gate.errors(expected if measured is None else measured, exact)
    for name in list(runs):
        got = expected if name == first else _call(name, runs, op, inputs, rows)
        if name not in runs:
            continue
        if name in op.accepts:
            problem = op.accepts[name](got, inputs)
        elif exact is None:
            problem = gate.mismatch(got, expected, op)
        else:
            budget = op.budgets.get(name, op.budget)
            problem, report = gate.over_budget(got, allowed, exact, op, budget)
            rows[name]["error"] = report
        if problem is not None:
            rows[name]["mismatch"] = problem
            del runs[name]
    del expected, exact
    gc.collect()


def _call(
    name: str,
    runs: dict[str, timing.Run],
    op: Op,
    inputs: dict[str, Any],
    rows: dict[str, Row],
) -> Any:
    """A provider's result; a failure is noted in its row and takes it out of the race."""
    run = runs.get(name) or _runnable(op, name, inputs)
    try:
        return run()
    except Exception as error:  # noqa: BLE001  (whatever a provider raises is its result)
        rows[name]["failed"] = _first_line(error)
        runs.pop(name, None)
        return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _add_memory(row: Row, run: timing.Run, device: str) -> None:
    """Of one call; what a first call sets up is there since the gate."""
    used = memory.of_call(run, device)
    if used is not None:
        row["peak_mib"] = round(used.peak / 2**20, 3)
        row["result_mib"] = round(used.result / 2**20, 3)
        row["scratch_mib"] = round(used.scratch / 2**20, 3)


def _add_times(
    op: Op, case: Case, effort: Effort, runs: dict[str, timing.Run], rows: dict[str, Row]
) -> None:
    """Percentiles, rates, shares of the floor and ratios, the last two taken within rounds."""
    if not runs:
        return
    ceilings = ceiling.of_case(case, effort.device)
    contenders = runs | {name: limit.run for name, limit in ceilings.items()}
    with memory.kept_pages(effort.keep_pages):
        times = timing.rounds(
            contenders,
            effort.device,
            effort.seconds,
            least=effort.least,
            most=effort.most,
            clock=effort.clock,
        )
    arrays = {name: np.array(each) for name, each in times.items()}
    floors = _floors(case, ceilings, arrays)
    for name in runs:
        took = arrays[name]
        rows[name] |= summary(took, case)
        rows[name]["floor_fraction"] = round(float(np.median(floors / took)), 5)
        rows[name] |= _ceiling_rates(ceilings, arrays)
        if op.baseline_name() in runs:
            rows[name]["baseline"] = op.baseline_name()
            rows[name]["times_faster"] = _quantiles(arrays[op.baseline_name()] / took, 4)


def _floors(
    case: Case, ceilings: dict[str, ceiling.Ceiling], arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """Least seconds of the case at each round's own copy bandwidth and GEMM rate."""
    count = len(next(iter(arrays.values())))
    return np.array(
        [
            ceiling.floor_seconds(
                case, {name: limit.work / arrays[name][turn] for name, limit in ceilings.items()}
            )
            for turn in range(count)
        ]
    )


def _ceiling_rates(
    ceilings: dict[str, ceiling.Ceiling], arrays: dict[str, np.ndarray]
) -> dict[str, float]:
    rates = {name: limit.work / np.median(arrays[name]) for name, limit in ceilings.items()}
    found = {}
    if ceiling.COPY in rates:
        found["copy_gb_per_s"] = round(rates[ceiling.COPY] / 1e9, 2)
    if ceiling.GEMM in rates:
        found["gemm_tflop_per_s"] = round(rates[ceiling.GEMM] / 1e12, 4)
    return found


def summary(times: np.ndarray, case: Case) -> Row:
    """Percentiles in milliseconds and rates."""
    p20, p50, p80 = _quantiles(times * 1e3, 5)
    p50_s = max(p50, 1e-5) / 1e3
    return {
        "runs": len(times),
        "p20_ms": p20,
        "p50_ms": p50,
        "p80_ms": p80,
        "gb_per_s": round(case.bytes_moved / p50_s / 1e9, 3) if case.bytes_moved else None,
        "tflop_per_s": round(case.flops / p50_s / 1e12, 4) if case.flops else None,
    }


def _quantiles(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(q), digits) for q in np.quantile(values, [0.2, 0.5, 0.8])]


def _add_graph_times(
    op: Op, case: Case, effort: Effort, names: list[str], rows: dict[str, Row]
) -> None:
    """Device time alone: a CUDA graph of calls on rotating inputs, larger together than the L2."""
    sets = _rotating_inputs(case)
    graphs: dict[str, Callable[[], Any]] = {}
    for name in names:
        if name in op.no_graph:
            rows[name]["graph_failed"] = op.no_graph[name]
            continue
        try:
            graphs[name] = timing.capture([_runnable(op, name, inputs) for inputs in sets])
        except Exception as error:  # noqa: BLE001  (not every provider can be captured)
            rows[name]["graph_failed"] = _first_line(error)
            torch.cuda.synchronize()
    if not graphs:
        return
    times = timing.rounds(
        graphs, "cuda", effort.seconds / 4, least=effort.least, most=effort.most, flush=False
    )
    for name, each in times.items():
        took = np.array(each) / len(sets)
        rows[name]["graph_p20_ms"], rows[name]["graph_p50_ms"], rows[name]["graph_p80_ms"] = (
            _quantiles(took * 1e3, 6)
        )
        if op.baseline_name() in times:
            base = np.array(times[op.baseline_name()]) / len(sets)
            rows[name]["graph_times_faster"] = _quantiles(base / took, 4)
        if rows[name].get("copy_gb_per_s"):
            floor = case.bytes_moved / (rows[name]["copy_gb_per_s"] * 1e9)
            rows[name]["graph_floor_fraction"] = round(floor / float(np.median(took)), 5)


def _rotating_inputs(case: Case) -> list[dict[str, Any]]:
    """Input sets that together are more than twice the L2 cache."""
    first = case.build("cuda")
    each = max(memory.bytes_of({k: v for k, v in first.items() if torch.is_tensor(v)}), 1)
    wanted = 2 * torch.cuda.get_device_properties("cuda").L2_cache_size
    count = min(max(-(-wanted // each), 1), GRAPH_INPUTS)
    return [first, *(case.build("cuda") for _ in range(count - 1))]
