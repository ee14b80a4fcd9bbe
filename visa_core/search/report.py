"""search.json, search.md and the pictures: Table 2 in shape, the path, the Pareto front."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visa_core.evaluation import tables
from visa_core.search.pictures import pareto_picture, path_picture
from visa_core.training.checkpoint import CheckpointError, write_file

NAME = "search.json"

ARMS = {
    "base": "Base",
    "sft": "SFT",
    "visa": "VISA",
    "neutral": "rewritten toward neutral",
    "profile": "rewritten toward the base's profile",
}
"""Arm -> row of the table. The last two are targets that need no search."""

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""97.5 % point of Student's t for n seeds; beyond them the normal's 1.96 is close enough."""


def write_report(out: Path, record: dict[str, Any]) -> Path:
    """Write the files into `out`; returns the path of search.json.

    record: "arms" (a mapping arm -> figures, a seed each), "searches" (the iterations, a seed
    each), "values", "what", "rule". Raises CheckpointError when they cannot be written.
    """
    record = record | {"table": summary(record["arms"]), "pareto": front(record["searches"])}
    try:
        out.mkdir(parents=True, exist_ok=True)
        path_picture(record["searches"], record["values"], out / "path.png")
        pareto_picture(record, out / "pareto.png")
    except OSError as error:
        raise CheckpointError(f"cannot write the report into {out}: {error}") from error
    record["pictures"] = ["path.png", "pareto.png"]
    write_file(out / "search.md", markdown(record))
    write_file(out / NAME, tables.to_json(record))
    return out / NAME


def summary(arms: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Drift and capability of each arm over seeds: mean, standard deviation, 95 % interval of the
    mean by Student's t (None for one seed), and the change against SFT in percent.
    """
    table: dict[str, dict[str, Any]] = {}
    for arm in arms[0]:
        table[arm] = {"seeds": len(arms)}
        for figure in ("drift", "capability", "reward"):
            values = [float(seed[arm][figure]) for seed in arms]
            table[arm][figure] = spread(values)
    for arm, row in table.items():
        for figure in ("drift", "capability"):
            against = table["sft"][figure]["mean"]
            change = None
            if arm not in ("base", "sft") and against:
                change = 100 * (row[figure]["mean"] - against) / against
            row[figure]["change_percent"] = change
    return table


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and interval of the mean."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return {"mean": mean, "std": None, "interval": None, "values": list(values)}
    std = statistics.stdev(values)
    half = STUDENT.get(n, 1.96) * std / n**0.5
    return {
        "mean": mean,
        "std": std,
        "interval": [mean - half, mean + half],
        "values": list(values),
    }


def front(searches: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Candidates of all searches that no other one beats in both drift and capability, by drift."""
    points = [
        {"seed": seed, "iteration": entry["iteration"], "z": z, **record}
        for seed, iterations in enumerate(searches)
        for entry in iterations
        for z, record in zip(entry["candidates"], entry["records"], strict=True)
    ]
    points.sort(key=lambda point: (point["drift"], -point["capability"]))
    best, kept = -1.0, []
    for point in points:
        if point["capability"] > best:
            best = point["capability"]
            kept.append(point)
    return kept


def markdown(record: Mapping[str, Any]) -> str:
    """The report for people."""
    table, what = record["table"], record["what"]
    rows = "".join(_row(ARMS.get(arm, arm), row) for arm, row in table.items())
    targets = "".join(
        "| " + " | ".join([str(seed), *(f"{target[v]:+.2f}" for v in record["values"])]) + " |\n"
        for seed, target in enumerate(record["targets"])
    )
    header = "| seed | " + " | ".join(record["values"]) + " |\n"
    header += "| ---: |" + " ---: |" * len(record["values"]) + "\n"
    pareto = "".join(
        f"| {p['drift']:.4f} | {p['capability']:.4f} | {p['seed']} | {p['iteration']} | "
        f"{_vector(p['z'], record['values'])} |\n"
        for p in record["pareto"]
    )
    count = sum(len(e["candidates"]) for run in record["searches"] for e in run)
    return "\n".join(
        [
            "# Adaptive value search\n",
            f"{record['rule']}\n",
            "| method | value drift | change | capability | change |\n"
            "| --- | ---: | ---: | ---: | ---: |\n" + rows,
            f"{table['sft']['seeds']} seeds: mean ± standard deviation [95 % interval of the mean, "
            "Student's t]. Changes are against SFT.\n",
            f"- capability: {what['capability']}\n- drift: {what['drift']}\n"
            f"- training: {what['training']}\n"
            f"- the base's weights are {'' if record['base_unchanged'] else 'NOT '}as they were\n",
            "## The targets found\n",
            header + targets,
            "![Mean and spread of every value over the iterations](path.png)\n",
            f"## Pareto front of all {count} candidates\n",
            "As measured in the search, on its own questions and probes.\n",
            "| drift | capability | seed | iteration | target |\n"
            "| ---: | ---: | ---: | ---: | --- |\n" + pareto,
            "![Drift against capability](pareto.png)\n",
            f"Seconds: {record['seconds']['prepared']} to prepare, {record['seconds']['searched']} "
            "to search and to train the end models.\n",
        ]
    )


def _row(name: str, row: Mapping[str, Any]) -> str:
    cells = [name]
    for figure in ("drift", "capability"):
        entry = row[figure]
        text = f"{entry['mean']:.4f}"
        if entry["std"] is not None:
            low, high = entry["interval"]
            text += f" ± {entry['std']:.4f} [{low:.4f}, {high:.4f}]"
        change = entry["change_percent"]
        cells += [text, "-" if change is None else f"{change:+.1f} %"]
    return "| " + " | ".join(cells) + " |\n"


def _vector(z: Sequence[float], names: Sequence[str]) -> str:
    """The values that the rewriter sees, which reads half steps."""
    seen = [(name, round(2 * x) / 2) for name, x in zip(names, z, strict=True)]
    return " ".join(f"{name} {x:+g}" for name, x in seen if x) or "neutral"
