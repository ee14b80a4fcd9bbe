"""`python -m bench.run --base REF`: this tree's kernels against another commit's.

The other commit is checked out into a temporary worktree and its extension is built in place. Both
sides are measured by this tree's bench in processes of their own, in turns: base, this, base, this.
A ratio is taken within each turn, so that it holds on a machine that others use too. What the other
commit lacks (an op, a backend) is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine

ROOT = Path(__file__).resolve().parents[1]
LENIENT = "VISA_BENCH_LENIENT"
"""Set for both sides: an op whose module cannot be imported is reported and left out."""

Key = tuple[str, str, str]


def compare(options: argparse.Namespace) -> int:
    """Measure both sides in turns, print and write the comparison; 1 where a side failed."""
    revision = _git("rev-parse", "--verify", f"{options.base}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder, _worktree(Path(folder), revision) as base:
        lane = Path(folder) / "lane"
        lane.mkdir()
        (lane / "bench").symlink_to(ROOT / "bench")
        sides = {"base": base, "this": ROOT}
        for side in sides.values():
            _check_side(side, lane)
        turns: dict[str, list[dict[Key, dict[str, Any]]]] = {name: [] for name in sides}
        for turn in range(options.base_rounds):
            for name, side in sides.items():
                print(f"turn {turn + 1} of {options.base_rounds}: {name}", flush=True)
                turns[name].append(_measure(side, lane, options, Path(folder) / f"{name}{turn}"))
    rows = _compare_rows(turns)
    for row in rows:
        print(line(row))
    _write(options, revision, rows)
    return int(not rows)


@contextmanager
def _worktree(folder: Path, revision: str) -> Iterator[Path]:
    """The commit, checked out and built; removed afterwards."""
    path = folder / "base"
    _git("worktree", "add", "--quiet", "--detach", str(path), revision)
    try:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        built = subprocess.run(command, cwd=path, capture_output=True, text=True)
        if built.returncode:
            print(f"no extension for {revision[:12]}: {built.stderr.strip()[-300:]}")
        yield path
    finally:
        _git("worktree", "remove", "--force", str(path))


def _environment(side: Path) -> dict[str, str]:
    path = os.pathsep.join([str(side / "kernels"), str(side)])
    return {**os.environ, "PYTHONPATH": path, LENIENT: "1"}


def _check_side(side: Path, lane: Path) -> None:
    """An installed visa_kernels must not be measured in place of the side's."""
    code = "import visa_kernels; print(visa_kernels.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=lane,
        env=_environment(side),
        capture_output=True,
        text=True,
        check=True,
    )
    found = Path(done.stdout.strip().splitlines()[-1]).resolve()
    assert found.is_relative_to(side.resolve()), f"{found} was imported instead of {side}"


def _measure(
    side: Path, lane: Path, options: argparse.Namespace, out: Path
) -> dict[Key, dict[str, Any]]:
    """Rows with a time, by op, case and provider."""
    command = [sys.executable, "-m", "bench.run", "--device", options.device, "--out", str(out)]
    command += ["--seconds", str(options.seconds)]
    for flag in ("op", "case", "provider", "dtype"):
        command += [word for value in getattr(options, flag) for word in (f"--{flag}", value)]
    for flag in ("threads", "min_rounds", "budget"):
        if getattr(options, flag):
            command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    if options.headline:
        command.append("--headline")
    command += ["--clock", options.clock]
    done = subprocess.run(
        command, cwd=lane, env=_environment(side), capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:])
    rows = [
        row
        for path in sorted(out.glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
    ]
    return {(r["op"], r["case"], r["provider"]): r for r in rows if "p50_ms" in r}


def _compare_rows(turns: dict[str, list[dict[Key, dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Per op, case and provider that both sides timed in every turn: times and ratios."""
    everywhere = [set(found) for side in turns.values() for found in side]
    both = set.intersection(*everywhere) if everywhere else set()
    for name, side in turns.items():
        for key in sorted(set().union(*side) - both):
            print(f"only timed at {name}: {' '.join(key)}")
    rows = []
    for key in sorted(both):
        base = [found[key]["p50_ms"] for found in turns["base"]]
        this = [found[key]["p50_ms"] for found in turns["this"]]
        ratios = [b / t for b, t in zip(base, this, strict=True)]
        rows.append(
            {
                **dict(zip(("op", "case", "provider"), key, strict=True)),
                "base_ms": round(statistics.median(base), 5),
                "this_ms": round(statistics.median(this), 5),
                "times_faster": [
                    round(value, 4)
                    for value in (min(ratios), statistics.median(ratios), max(ratios))
                ],
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    low, middle, high = row["times_faster"]
    return (
        f"{row['op']:<18} {row['case']:<24} {row['provider']:<12} base {row['base_ms']:10.4f} ms"
        f"  this {row['this_ms']:10.4f} ms  x{middle:.3f} ({low:.3f} to {high:.3f})"
    )


def _write(options: argparse.Namespace, revision: str, rows: list[dict[str, Any]]) -> None:
    """One file per base commit in the folder `compare` of the results."""
    folder = options.out / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    result = {**machine.describe(options.device), "base": revision, "comparison": rows}
    path = folder / f"{revision[:12]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"-> {path}")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip()
