"""Results as tables: `python -m bench.table FOLDER [--all]` prints Markdown for the README."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import machine

Result = dict[str, Any]
Row = dict[str, Any]

OURS = ("cpu", "triton", "cuda")
"""Providers that are ours, by their name up to a hyphen; our other backends are plain torch."""


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of one results folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="bench/results/DEVICE")
    parser.add_argument("--all", action="store_true", help="every case, not the headline ones")
    options = parser.parse_args(arguments)
    results = load(options.folder)
    if not results:
        parser.error(f"{options.folder} holds no results")
    print(markdown(results, every=options.all))
    return 0


def load(folder: Path) -> list[Result]:
    """Results of a folder, one per op; empty where there is none."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [result for result in results if result.get("rows") and result.get("format", 1) >= 2]


def shown_rows(results: list[Result], every: bool) -> list[tuple[Result, Row]]:
    """Rows of headline cases; all rows where asked for, or where no case is a headline."""
    rows = [(result, row) for result in results for row in result["rows"]]
    headline = [(result, row) for result, row in rows if row.get("headline")]
    return rows if every or not headline else headline


def markdown(results: list[Result], every: bool = False) -> str:
    """A table with a row per provider, and where the numbers come from."""
    lines = [
        "| op | case | provider | ms (p20 to p80) | times baseline | floor | scratch MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for result, row in shown_rows(results, every):
        name = named(row["provider"], row, result)
        lines.append(
            f"| {row['op']} | {row['case']} | {name} | " + " | ".join(cells(row)) + " |"
        )
    return "\n".join([*lines, "", *sources(results)])


def cells(row: Row) -> list[str]:
    """Time, ratio, share of the floor and memory of a row, or why it has none."""
    for key, said in (("skipped", "not run"), ("failed", "failed"), ("mismatch", "wrong")):
        if key in row:
            return [f"{said}: {row[key][:80]}".replace("|", "/"), "", "", ""]
    ratio = ""
    if "times_faster" in row and row["provider"] != row["baseline"]:
        low, middle, high = row["times_faster"]
        ratio = f"{middle:.3g} of {row['baseline']} ({low:.3g} to {high:.3g})"
    memory = f"{row['scratch_mib']:.0f}" if "scratch_mib" in row else ""
    return [times(row), ratio, f"{best_floor(row):.1%}", memory]


def times(row: Row) -> str:
    """Milliseconds, and those of graph replay where there are some."""
    text = f"{row['p50_ms']:.4g} ({row['p20_ms']:.4g} to {row['p80_ms']:.4g})"
    if "graph_p50_ms" in row:
        text += f", replayed {row['graph_p50_ms']:.4g}"
    return text


def best_floor(row: Row) -> float:
    """Share of the floor, by graph replay where that was measured."""
    return row.get("graph_floor_fraction", row["floor_fraction"])


def is_ours(provider: str) -> bool:
    """Whether a provider is one of our kernels."""
    return provider.split("-")[0] in OURS


def named(provider: str, row: Row, result: Result) -> str:
    """The provider with the version of the package whose code runs."""
    package = row.get("package", "visa-core" if is_ours(provider) else "torch")
    version = result["versions"].get(package)
    label = "ours" if package == "visa-core" else package
    return f"{provider} ({label} {version})" if version else provider


def sources(results: list[Result]) -> list[str]:
    """Where and with what the numbers were measured, once per distinct place."""
    said = []
    for result in results:
        versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items() if v)
        clock = ", CPU time" if result.get("clock") == "cpu" else ""
        said.append(
            f"{result['device']}, {result['torch_threads']} threads{clock}, {versions}, "
            f"commit {machine.short(result['commit'])}, {result['date']}."
        )
    return sorted(set(said))


def terminal(results: list[Result], every: bool = False) -> str:
    """The same as narrow columns."""
    if not results:
        return "no results"
    lines = []
    for _, row in shown_rows(results, every):
        took, ratio, floor, memory = cells(row)
        lines.append(
            f"{row['op']:<24.24} {row['case']:<28.28} {row['provider']:<12.12} {took:<44}"
            f" {ratio:<34} {floor:>7} {memory:>6}"
        )
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
