"""report.md, report.json and the pictures of an evaluation."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import visa_core
from visa_core.config import EvaluationConfig
from visa_core.evaluation import plots, tables
from visa_core.evaluation.evaluate import Evaluation
from visa_core.training.checkpoint import CheckpointError

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "matplotlib")
SHOWN_CIRCLES = 3
SHOWN_EXAMPLES = 4


def versions() -> dict[str, str]:
    """Versions of Python, this package and what its figures depend on."""
    found = {"python": platform.python_version(), "visa_core": visa_core.__version__}
    return found | {name: metadata.version(name) for name in PACKAGES}


def write_report(
    out: Path,
    evaluation: Evaluation,
    *,
    timing: Mapping[str, float] | None = None,
    config: Any = None,
    curves: Mapping[str, Path] | None = None,
    show: str | None = None,
    limits: EvaluationConfig | None = None,
) -> Path:
    """Write report.md, report.json and PNGs into `out`; returns the path of report.json.

    timing: seconds by stage. config: a mapping or dataclass, recorded as it is. curves:
    metrics.jsonl of training runs by name. show: the method whose rewrites are shown (by default
    "grpo", else the last). Raises CheckpointError when `out` cannot be written.
    """
    out = Path(out)
    shown = show or ("grpo" if "grpo" in evaluation.methods else list(evaluation.methods)[-1])
    record = report_record(evaluation, timing or {}, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = _draw(out, evaluation, curves or {}, shown, limits)
        _write(out / "report.md", markdown(evaluation, record, pictures, shown))
        _write(out / "report.json", tables.to_json(record | {"pictures": list(pictures)}))
    except OSError as error:
        raise CheckpointError(
            f"cannot write the report into {out}: {error}. Free space or choose a writable folder "
            "with --out."
        ) from error
    return out / "report.json"


def report_record(
    evaluation: Evaluation, timing: Mapping[str, float], config: Any
) -> dict[str, Any]:
    """What report.json holds."""
    plain = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    seconds = {name: result.seconds for name, result in evaluation.methods.items()}
    return {
        "methods": evaluation.summaries(),
        "warnings": evaluation.warnings,
        "timing_s": dict(timing)
        | {f"rewrite_{k}": round(v, 2) for k, v in seconds.items() if v > 0.01},
        "config": plain or {},
        "versions": versions(),
    }


def markdown(
    evaluation: Evaluation, record: Mapping[str, Any], pictures: Mapping[str, str], shown: str
) -> str:
    """The report for people."""
    summaries = evaluation.summaries()
    parts = [
        "# Evaluation\n",
        f"{len(evaluation.examples)} prompts; mean ± standard deviation over prompts. `copy` gives "
        "the source back unchanged: it keeps all facts and moves no value. consistency is "
        "(2 fwd + bwd) / 3; fwd is P(rewrite entails source), nothing lost; bwd is P(source "
        "entails rewrite), nothing invented.\n",
        tables.to_markdown(summaries),
    ]
    if any("true_jsr" in summary for summary in summaries.values()):
        parts += [
            "## Known by construction\n",
            "The same figures from the facts and values themselves, without any learned scorer.\n",
            tables.to_markdown(summaries, tables.TRUE),
        ]
    parts += ["## Warnings\n", _bullets(evaluation.warnings) or "No sign of reward hacking.\n"]
    parts += [f"![{title}]({file})\n" for file, title in pictures.items()]
    parts += [
        "## Error by value\n",
        tables.dimension_markdown(summaries, evaluation.space.names),
        f"## Examples: {shown}\n",
        *_examples(evaluation, shown),
        "## Seconds\n",
        _bullets([f"{name}: {seconds}" for name, seconds in record["timing_s"].items()]),
        "## Versions\n",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + "\n",
    ]
    return "\n".join(part for part in parts if part)


def _examples(evaluation: Evaluation, shown: str) -> list[str]:
    result = evaluation.methods[shown]
    parts = []
    for row in range(min(SHOWN_EXAMPLES, len(evaluation.examples))):
        example = evaluation.examples[row]
        vectors = (
            evaluation.source_values[row],
            evaluation.targets[row],
            result.measured.values[row],
        )
        lines = [
            f"query: {example.query}",
            f"instruction: {example.instruction}",
            f"response: {example.response}",
            f"rewrite: {result.rewrites[row]}",
            *(
                f"{name}: {_vector(evaluation, vector)}"
                for name, vector in zip(("before", "target", "after"), vectors, strict=True)
            ),
            f"consistency: {float(result.measured.consistency.mean[row]):.3f}",
        ]
        parts.append(f"### {row + 1}\n\n{_bullets(lines)}")
    return parts


def _vector(evaluation: Evaluation, vector: torch.Tensor) -> str:
    known = evaluation.space.as_dict(vector, digits=2)
    return ", ".join(f"{name} {value:+.2f}" for name, value in known.items()) or "neutral"


def _bullets(lines: list[str]) -> str:
    return "".join(f"- {' '.join(line.split())}\n" for line in lines)


def _draw(
    out: Path,
    evaluation: Evaluation,
    curves: Mapping[str, Path],
    shown: str,
    limits: EvaluationConfig | None,
) -> dict[str, str]:
    """Write the pictures; file name -> what it shows."""
    pictures = {}
    runs = {name: plots.read_metrics(path) for name, path in curves.items()}
    if any(runs.values()):
        plots.reward_curve({k: v for k, v in runs.items() if v}, out / "reward.png")
        pictures["reward.png"] = "Reward during training"
    plots.consistency_against_error(evaluation.summaries(), out / "tradeoff.png", limits)
    pictures["tradeoff.png"] = "Consistency against value error"
    count = min(SHOWN_CIRCLES, len(evaluation.examples))
    plots.value_circles(
        evaluation.source_values[:count],
        evaluation.targets[:count],
        evaluation.methods[shown].measured.values[:count],
        out / "values.png",
        titles=[f"example {row + 1}" for row in range(count)],
        space=evaluation.space,
    )
    pictures["values.png"] = "Values before, wanted and after"
    return pictures


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
