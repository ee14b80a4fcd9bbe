"""Data construction at its full size: `python -m bench.construction [--comparisons 233000]`.

A file in Community Alignment's schema is made (bench/alignment_file.py), then built into triplets
with the lexicon annotator, each side in processes of its own, in turns:

- ours: `visa data build`: streaming, answers and near-duplicate index in SQLite
- plain: the same steps with everything in memory and datasketch's own index (`--plain N` for its
  comparisons, since it is slow; ours is run at that size too for the ratio)

A side whose number of triplets is off by over 1 % gets no ratio. `--fulcra FILE` adds how well the
lexicon annotator tells the labelled values of real dialogues.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import machine
from bench.alignment_file import real_sentences, write_alignment

TOLERANCE = 0.01
LIMITS = {"minutes": 10.0, "gib": 2.0}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=233_000, help="0: the ratio alone")
    parser.add_argument("--plain", type=int, default=20_000, help="comparisons; 0: no ratio")
    parser.add_argument("--turns", type=int, default=3, help="processes of each side of the ratio")
    parser.add_argument("--fulcra", type=Path, help="train.jsonl of FULCRA")
    parser.add_argument("--scratch", type=Path, help="folder for what is built; kept")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    sentences = real_sentences()
    result: dict[str, Any] = {
        "device": machine.device_name("cpu"),
        "cores": len(os.sched_getaffinity(0)),
        "texts": "hh_helpful" if sentences else "words",
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = options.scratch or Path(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        if options.comparisons:
            result["whole"] = whole(scratch, options.comparisons, sentences)
        if options.plain:
            result["ratio"] = ratio(scratch, options.plain, options.turns, sentences)
    if options.fulcra:
        result["lexicon"] = lexicon_quality(options.fulcra)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if "wrong" in result.get("ratio", {}) else 0


def whole(scratch: Path, comparisons: int, sentences: list[str]) -> dict[str, Any]:
    """One build of the full size, and whether it stays within its limits."""
    table = scratch / "whole.csv"
    made = write_alignment(table, comparisons, sentences)
    found = in_process("ours", table, scratch / "whole")
    within = found["seconds"] <= 60 * LIMITS["minutes"] and found["peak_gib"] <= LIMITS["gib"]
    return found | {
        "written": made.comparisons,
        "file_mib": round(table.stat().st_size / 2**20, 1),
        "limits": LIMITS,
        "within_limits": within,
    }


def ratio(scratch: Path, comparisons: int, turns: int, sentences: list[str]) -> dict[str, Any]:
    """Both sides in turns at a size that the plain way can stand."""
    table = scratch / "part.csv"
    write_alignment(table, comparisons, sentences)
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    for turn in range(turns):
        for side, runs in found.items():
            runs.append(in_process(side, table, scratch / f"{side}-{turn}"))
            print(f"turn {turn + 1}, {side}: {runs[-1]}", file=sys.stderr, flush=True)
    counts = {side: runs[0]["triplets"] for side, runs in found.items()}
    if abs(counts["plain"] - counts["ours"]) > TOLERANCE * counts["plain"]:
        return {"wrong": counts}
    both = list(zip(found["plain"], found["ours"], strict=True))
    times = sorted(plain["seconds"] / ours["seconds"] for plain, ours in both)
    return {
        "comparisons": comparisons,
        "runs": found,
        "times_as_fast": [statistics.median(times), times[0], times[-1]],
        "memory_of_plain": statistics.median(p["peak_gib"] / o["peak_gib"] for p, o in both),
    }


def in_process(side: str, table: Path, out: Path) -> dict[str, Any]:
    """Wall clock, CPU time and highest resident memory of a build in a process of its own."""
    if side == "ours":
        command = ["-m", "visa_core.cli", "data", "build", "--data", f"ca:{table}", "--out", out]
    else:
        command = ["-m", "bench.construction_plain", table, out]
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if child.returncode:
        raise RuntimeError(f"{side} ended with status {child.returncode}")
    stages = json.loads((out / "report.json").read_text(encoding="utf-8"))["stages"]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 3),
        "comparisons": stages["comparisons read"],
        "triplets": stages["triplets"],
    }


def lexicon_quality(path: Path) -> dict[str, float]:
    """Signs of values in FULCRA's dialogues as the lexicon annotator reads them: precision, recall
    and F1 over all (dialogue, value, sign), and the F1 of always saying the six most frequent.
    """
    from collections import Counter

    from visa_core.data.annotate.lexicon import LexiconAnnotator
    from visa_core.data.sources import load_dialogues

    annotator = LexiconAnnotator()
    names = annotator.space.names
    wanted, read = [], []
    for dialogue in load_dialogues([f"fulcra:{path}"]):
        wanted.append({(name, value > 0) for name, value in dialogue.values.items() if value})
        levels, _ = annotator.levels(dialogue.response, "", "")
        read.append({(name, n > 0) for name, n in zip(names, levels, strict=True) if n})
    frequent = Counter(sign for signs in wanted for sign in signs).most_common(6)
    always = {sign for sign, _ in frequent}
    precision, recall, f1 = scores(wanted, read)
    return {
        "dialogues": len(wanted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_of_always_six": scores(wanted, [always] * len(wanted))[2],
    }


def scores(wanted: list[set], read: list[set]) -> tuple[float, float, float]:
    """Micro-averaged precision, recall and F1 of sets."""
    hits = sum(len(a & b) for a, b in zip(wanted, read, strict=True))
    precision = hits / max(1, sum(map(len, read)))
    recall = hits / max(1, sum(map(len, wanted)))
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return round(precision, 4), round(recall, 4), round(f1, 4)


if __name__ == "__main__":
    sys.exit(main())
