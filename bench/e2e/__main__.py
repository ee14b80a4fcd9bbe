"""A GRPO step by phases: `python -m bench.e2e [--case 64+64 ...] [--providers ours-hf trl ...]`.

Sample, score, train, sync on one model folder, prompts, lengths and reward. Each provider has a
process of its own. On a CPU their steps take turns; on a GPU, whose memory they would share, one
process follows the other. The first step of each warms up. JSON in bench/results/DEVICE, one file
a case; `python -m bench.e2e.picture` draws them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench import ceiling, machine, timing
from bench.e2e import worker
from bench.e2e.cases import CASES, Case, write_model
from bench.e2e.summary import Found, is_ours, lines, summary
from bench.e2e.turns import ProviderFailed, Worker

ON_CPU = ("64+64", "384+96")


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases; 1 where one of ours failed."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    missing = {name: why for name in options.providers if (why := worker.why_not(name))}
    stop = None if options.budget is None else time.monotonic() + options.budget
    failed = False
    for index, name in enumerate(options.case):
        left = None if stop is None else (stop - time.monotonic()) / (len(options.case) - index)
        result = measured(CASES[name], options, missing, left)
        print("\n".join(lines(name, result)), flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"e2e-{name}.json"
        path.write_text(json.dumps({"case": name, **result}, indent=1) + "\n", encoding="utf-8")
        print(f"-> {path}", flush=True)
        failed |= any(is_ours(p) and p not in missing for p in result["missing"])
    return int(failed)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options; `out` is set."""
    parser = argparse.ArgumentParser(prog="python -m bench.e2e", description=__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(ON_CPU))
    parser.add_argument(
        "--providers", nargs="+", choices=worker.PROVIDERS, default=["ours-hf", "trl"]
    )
    parser.add_argument("--steps", type=int, default=5, help="counted steps, after one warm-up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, help="seconds that the providers may take")
    parser.add_argument("--out", type=Path, help="folder of the JSON files")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    devices = {CASES[name].device for name in options.case}
    if len(devices) > 1:
        parser.error("--case takes cases of one device: CPU or GPU")
    if devices == {"cuda"} and not torch.cuda.is_available():
        parser.error(f"{', '.join(options.case)}: torch {torch.__version__} sees no CUDA device")
    results = Path(__file__).parents[1] / "results"
    options.out = options.out or results / machine.folder_name(devices.pop())
    return options


def measured(
    case: Case, options: argparse.Namespace, missing: dict[str, str], left: float | None
) -> dict[str, Any]:
    """One case: description of machine and case, then `summary`. left: seconds it may take."""
    providers = [name for name in options.providers if name not in missing]
    together = [providers] if case.device == "cpu" else [[name] for name in providers]
    found = Found(missing=dict(missing))
    with tempfile.TemporaryDirectory() as scratch:
        write_model(case, Path(scratch))
        asked = {
            "case": case.as_dict(),
            "folder": scratch,
            "steps": options.steps + 1,
            "threads": options.threads,
        }
        stop = None if left is None else time.monotonic() + left
        for index, names in enumerate(together):
            limit = None if stop is None else (stop - time.monotonic()) / (len(together) - index)
            take_turns(
                [Worker({**asked, "provider": n}, limit) for n in names], found, options.steps
            )
    return {
        **machine.describe(case.device),
        "settings": {**case.as_dict(), "threads": options.threads},
        **summary(case, found, peak_flops(case)),
        "steps": found.steps,
    }


def take_turns(workers: list[Worker], found: Found, steps: int, limit: float | None = None) -> None:
    """One uncounted and `steps` counted steps of each, one after the other, fewer where another
    round would end after `limit` seconds. Who fails is noted and the others go on; whose time is
    up keeps what it has.
    """
    alive, begun = list(workers), time.monotonic()

    def each(what: str) -> dict[str, Any]:
        answers = {}
        for one in list(alive):
            try:
                answers[one.name] = getattr(one, what)()
            except ProviderFailed as error:
                alive.remove(one)
                if not (one.expired and one.name in found.steps):
                    found.missing[one.name] = str(error)
                    found.steps.pop(one.name, None)
        return answers

    try:
        each("start")
        each("step")
        for _ in range(steps):
            before = time.monotonic()
            for name, answer in each("step").items():
                found.steps.setdefault(name, []).append(answer)
                print(said(name, answer), flush=True)
            now = time.monotonic()
            if limit is not None and now - begun + 1.2 * (now - before) > 0.9 * limit:
                break
        found.memory |= each("end")
    finally:
        for one in workers:
            one.kill()


def said(name: str, step: dict[str, Any]) -> str:
    """One step for the terminal."""
    phases = ", ".join(f"{k} {v:.2f}" for k, v in step["phases"].items() if v >= 0.005)
    return f"{name}: {sum(step['phases'].values()):.2f} s ({phases})"


def peak_flops(case: Case) -> float:
    """FLOP/s of a large matrix product here, in the case's type."""
    product = ceiling.gemm(case.device, getattr(torch, case.dtype))
    times = timing.rounds({"gemm": product.run}, case.device, 1.0, least=3, most=9)["gemm"]
    return product.work / statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
