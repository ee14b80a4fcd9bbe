"""`visa data`: build triplets from preferences, describe them, push them to a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from visa_core.commands.data_options import CardOptions, PushOptions
from visa_core.data.construction.build import build
from visa_core.data.construction.card import REPORT, read_report, write_card
from visa_core.data.construction.config import BuildConfig
from visa_core.data.construction.output import refresh
from visa_core.data.construction.pictures import draw_all
from visa_core.data.construction.push import push
from visa_core.data.construction.statistics import statistics_of
from visa_core.training.checkpoint import write_file
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ


def run(options: BuildConfig | PushOptions | CardOptions) -> int:
    """Run one of the three."""
    if isinstance(options, BuildConfig):
        print(summary(build(options)))
        print(f"{options.out / 'README.md'}\nnext: {training_command(options)}")
    elif isinstance(options, PushOptions):
        print(push(options.folder, options.repo, private=not options.public))
    else:
        card(options)
    return 0


def card(options: CardOptions) -> None:
    """Statistics, pictures and card of what the files hold now."""
    space = SCHWARTZ if options.space is None else ValueSpace.from_file(options.space)
    report = read_report(options.folder)
    report["statistics"] = statistics_of(options.folder, space).record()
    report["files"] = {name: refresh(options.folder / name) for name in report["files"]}
    draw_all(report["statistics"], space, options.folder / "figures")
    path = write_card(options.folder, report, space, pictures=True)
    write_file(options.folder / REPORT, json.dumps(report, indent=1) + "\n")
    if options.json:
        print(json.dumps(report["statistics"], indent=1))
    else:
        print(path.read_text(encoding="utf-8"))


def summary(report: Mapping[str, Any]) -> str:
    """What was kept, why not, and what the answers cost, for the terminal."""
    counts = dict(report["stages"])
    for table, splits in report["files"].items():
        counts |= {f"{table}, {split}": rows for split, rows in splits.items()}
    run = report["run"]
    counts |= run["answers"]
    account = run["account"] or {}
    counts |= {name: account[name] for name in account if name not in ("faults", "cost")}
    counts |= {f"fault: {kind}": n for kind, n in account.get("faults", {}).items()}
    width = max(map(len, counts))
    lines = [f"{name:{width}}  {count:>10,}" for name, count in counts.items()]
    if account.get("cost"):
        lines.append(f"{'cost':{width}}  {account['cost']:>10.4f}")
    return "\n".join(lines)


def training_command(options: BuildConfig) -> str:
    """What trains on the result."""
    data = f"jsonl:{options.out / 'triplets' / 'train.jsonl'}"
    return f"visa train sft --model MODEL --data {data} --out DIR"
