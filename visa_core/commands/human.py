"""`visa human`: sheets for raters, the page to fill them in, the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from visa_core.commands.human_options import ExportOptions, ScoreOptions, ServeOptions
from visa_core.evaluation import tables
from visa_core.evaluation.human.answers import read_answers
from visa_core.evaluation.human.scoring import score
from visa_core.evaluation.human.server import RatingServer
from visa_core.evaluation.human.sheets import (
    KEY,
    SHEET,
    make_sheets,
    read_json,
    read_system,
    write_sheets,
)
from visa_core.evaluation.intervals import shown
from visa_core.evaluation.journal import content_key
from visa_core.training.checkpoint import write_file
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ


def run(options: ExportOptions | ServeOptions | ScoreOptions) -> int:
    """Run one of the three."""
    if isinstance(options, ExportOptions):
        return export(options)
    return serve(options) if isinstance(options, ServeOptions) else report(options)


def export(options: ExportOptions) -> int:
    """Write the sheet and its key."""
    space = SCHWARTZ if options.space is None else ValueSpace.from_file(options.space)
    sheets = make_sheets(
        [read_system(argument, "values", space) for argument in options.comparison],
        [read_system(argument, "target", space) for argument in options.identification],
        space,
        most=options.n,
        seed=options.seed,
    )
    write_sheets(options.out, sheets)
    print(f"{len(sheets.sheet['items'])} items in {options.out / SHEET}")
    print(f"who is who: {options.out / KEY}; keep it from the raters")
    for reason, count in sheets.left_out.items():
        print(f"left out: {count} rows, {reason}")
    print(f"next: visa human serve --sheet {options.out}")
    return 0


def serve(options: ServeOptions) -> int:
    """Serve the page until Ctrl-C."""
    with RatingServer(options.sheet, options.port) as server:
        print(f"{server.url} (on this machine alone; Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nevery answer is on disk")
    return 0


def report(options: ScoreOptions) -> int:
    """Print and write the figures."""
    sheet, key = read_json(options.sheet / SHEET), read_json(options.sheet / KEY)
    if key.get("sheet") != content_key(sheet):
        raise ValueError(f"{options.sheet / KEY} does not belong to {options.sheet / SHEET}")
    answers = read_answers(options.sheet, sheet)
    if not any(answers.values()):
        raise ValueError(
            f"{options.sheet} has no answers yet: visa human serve --sheet {options.sheet}"
        )
    record = score(sheet, key, answers)
    out = options.out or options.sheet
    write_file(out / "human.json", tables.to_json(record))
    write_file(out / "human.md", markdown(record))
    print(json.dumps(record, indent=1) if options.json else markdown(record))
    return 0


def markdown(record: Mapping[str, Any]) -> str:
    """The report for people."""
    raters = ", ".join(f"{name} {count}" for name, count in record["raters"].items())
    parts = [
        "# Human evaluation\n",
        f"Answers by rater: {raters}; {record['incomplete']} are incomplete and not counted. 95 % "
        "intervals (Wilson), n = items: several raters of one item count as one, by their mean. "
        "A tie counts half.\n",
    ]
    if "comparison" in record:
        parts += _comparison(record["comparison"])
    if "identification" in record:
        parts += _identification(record["identification"])
    return "\n".join(parts)


def _comparison(task: Mapping[str, Any]) -> list[str]:
    lines = [
        f"| {criterion} | {name} | {shown(entry['win_rate'][name])} | {_alpha(entry['alpha'])} |\n"
        for criterion, entry in task["criteria"].items()
        for name in task["systems"]
    ]
    sides = [
        f"- {criterion}: side A in {shown(entry['side_a_chosen'])} choices, "
        f"{entry['choices'].get('alike', 0)} ties\n"
        for criterion, entry in task["criteria"].items()
    ]
    return [
        f"## Value profile comparison, {task['ratings']} ratings\n",
        "| criterion | system | win rate | alpha (nominal) |\n| --- | --- | --- | --- |\n"
        + "".join(lines),
        "Sides were drawn at random, so that half is expected of side A:\n\n" + "".join(sides),
    ]


def _identification(task: Mapping[str, Any]) -> list[str]:
    systems = [
        f"| {name} | {shown(entry['named_sign_matches'])} | {entry['matches_mean']:.2f} | "
        f"{entry['matches_median']:.1f} | {entry['items']} |\n"
        for name, entry in task["systems"].items()
    ]
    wins = [
        f"| {name} | {other} | {shown(entry)} |\n"
        for name, table in task["wins"].items()
        for other, entry in {**table["over"], "all others": table["over_all"]}.items()
    ]
    parts = [
        f"## Value identification, {task['ratings']} ratings\n",
        f"Named: of the values that raters named, the share with the target's sign. Matches: of "
        f"all {task['values']} values, those with the target's sign, not named counting as "
        "neutral; raters name few values, so that targets with many cannot match everywhere.\n",
        "| system | named | matches, mean | median | items |\n| --- | --- | ---: | ---: | ---: |\n"
        + "".join(systems),
        f"Agreement on signs, alpha (interval): {_alpha(task['alpha'])}.\n",
    ]
    if wins:
        parts += [
            "More matches on the same source win:\n",
            "| system | over | win rate |\n| --- | --- | --- |\n" + "".join(wins),
        ]
    return parts


def _alpha(entry: Mapping[str, Any]) -> str:
    value = "-" if entry["alpha"] is None else f"{entry['alpha']:.3f}"
    return f"{value}, {entry['units']} shared"
