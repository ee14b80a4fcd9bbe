"""`visa evaluate`: a detector against labels, a system's rewriter against the copy baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch

from visa_core.commands.detect import load_detector
from visa_core.commands.options import EvaluateDetectorOptions, EvaluateRewriterOptions
from visa_core.data.embedded import truth
from visa_core.data.rewriting import load_rewriting
from visa_core.data.sources import parse_spec
from visa_core.evaluation import tables
from visa_core.evaluation.classification import evaluate_detector
from visa_core.evaluation.evaluate import Evaluation, Rewrites, Truth, evaluate
from visa_core.evaluation.report import report_record, write_report
from visa_core.models.rewriter import Rewriter
from visa_core.pipeline import Pipeline
from visa_core.training.stage import report_set_aside
from visa_core.training.targets import predicted_targets, recorded_targets
from visa_core.types import RewriteExample


def run_detector(options: EvaluateDetectorOptions) -> int:
    """Print the scores of a detector."""
    detector = load_detector(options.model, options.device)
    scores = evaluate_detector(detector, options.data, options.batch_size)
    print(tables.to_json(scores) if options.json else render_scores(scores), end="")
    return 0


def render_scores(scores: Mapping[str, object]) -> str:
    """The scores for a terminal, one a line; "-" where the data or the model cannot give one."""
    lines = []
    for name, score in scores.items():
        if isinstance(score, Mapping):
            lines.append(name)
            lines += [f"  {key:<28} {value:.3f}" for key, value in score.items()]
        else:
            lines.append(f"{name:<30} {_figure(score)}")
    return "\n".join(lines) + "\n"


def _figure(score: object) -> str:
    if score is None:
        return "-"
    return f"{score:.3f}" if isinstance(score, float) else str(score)


def run_rewriter(options: EvaluateRewriterOptions) -> int:
    """Print the figures of a system's rewriter and its baselines; write the report where asked."""
    pipeline = Pipeline.from_pretrained(options.model, device=options.device)
    rewriters = {"rewriter": pipeline.rewriter}
    if options.vanilla is not None:
        rewriters["vanilla"] = _vanilla(options, pipeline.rewriter)
    examples = load_rewriting(options.data, pipeline.space, seed=options.seed)[: options.n]
    targets = example_targets(pipeline, examples, options.targets)
    examples, targets = fitting(rewriters, examples, targets)
    evaluation = evaluate(
        examples,
        targets,
        methods(rewriters, options),
        pipeline.detector,
        pipeline.fact_analyzer,
        pipeline.config,
        space=pipeline.space,
        truth=known_truth(examples, options, pipeline),
    )
    _report(evaluation, options)
    return 0


def _vanilla(options: EvaluateRewriterOptions, trained: Rewriter) -> Rewriter:
    assert options.vanilla is not None
    rewriter = Rewriter.from_pretrained(options.vanilla)
    rewriter.model.to(trained.model.device).eval()
    rewriter.max_prompt, rewriter.max_completion = trained.max_prompt, trained.max_completion
    return rewriter


def example_targets(pipeline: Pipeline, examples: list[RewriteExample], kind: str) -> torch.Tensor:
    """Targets [B, K], predicted as for a user or as the records say."""
    if kind == "recorded":
        return recorded_targets(examples, pipeline.space)
    return predicted_targets(examples, pipeline.detector, pipeline.translator, pipeline.space)


def fitting(
    rewriters: Mapping[str, Rewriter], examples: list[RewriteExample], targets: torch.Tensor
) -> tuple[list[RewriteExample], torch.Tensor]:
    """Records whose prompt fits every rewriter; the others are counted in a warning."""
    kept, problems = [], []
    for row, (example, target) in enumerate(zip(examples, targets, strict=True)):
        try:
            for rewriter in rewriters.values():
                rewriter.prompt(example.query, example.response, target)
            kept.append(row)
        except ValueError as error:
            problems.append(f"{example.id or f'record {row + 1}'}: {error}")
    report_set_aside(problems, len(examples))
    return [examples[row] for row in kept], targets[kept]


def methods(
    rewriters: Mapping[str, Rewriter], options: EvaluateRewriterOptions
) -> dict[str, Rewrites]:
    """How each method rewrites, by name; greedy ones end in "_greedy"."""
    temperatures = {"": options.temperature} | ({"_greedy": 0.0} if options.greedy else {})

    def rewrites(rewriter: Rewriter, temperature: float) -> Rewrites:
        return lambda rows, wanted: rewriter.rewrite(
            [row.query for row in rows],
            [row.response for row in rows],
            wanted,
            temperature=temperature,
            seed=options.seed,
            batch_size=options.batch_size,
        )

    return {
        name + suffix: rewrites(rewriter, temperature)
        for name, rewriter in rewriters.items()
        for suffix, temperature in temperatures.items()
    }


def known_truth(
    examples: list[RewriteExample], options: EvaluateRewriterOptions, pipeline: Pipeline
) -> Truth | None:
    """The truth about rewrites of embedded texts, against the true targets; None for others."""
    if any(parse_spec(text).kind != "embedded" for text in options.data):
        return None
    wanted = recorded_targets(examples, pipeline.space)
    by_source = {e.response: target for e, target in zip(examples, wanted, strict=True)}
    return lambda source, rewrite, target: truth.score(source, rewrite, by_source[source])


def _report(evaluation: Evaluation, options: EvaluateRewriterOptions) -> None:
    settings = asdict(options)
    if options.out is not None:
        path = write_report(options.out, evaluation, config=settings, show="rewriter")
    if options.json:
        print(tables.to_json(report_record(evaluation, {}, settings)), end="")
        return
    print(tables.to_markdown(evaluation.summaries()))
    for warning in evaluation.warnings:
        print(f"warning: {warning}")
    if options.out is not None:
        print(f"report: {path.with_name('report.md')}, {path}")
