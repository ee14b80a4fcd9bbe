"""`visa rewrite`: one response from the command line, or a file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from visa_core.commands.options import RewriteOptions
from visa_core.commands.rows import through
from visa_core.pipeline import Pipeline, RewriteRequest, RewriteResult


def run(options: RewriteOptions) -> int:
    """Exit status: 0, or 1 when no row of a file could be rewritten."""
    pipeline = Pipeline.from_pretrained(options.model, device=options.device)
    if options.input is None:
        return rewrite_one(pipeline, options)
    return rewrite_file(pipeline, options)


def rewrite_one(pipeline: Pipeline, options: RewriteOptions) -> int:
    """Rewrite --response and print it."""
    result = pipeline.rewrite(
        options.query or "",
        options.response or "",
        instruction=options.instruction,
        target=options.target,
        temperature=options.temperature,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(render(result))
    return 0


def render(result: RewriteResult) -> str:
    """A result for a terminal: the text, the three vectors, the scores."""
    width = max(len(name) for name in result.target)
    lines = [result.text, "", f"{'value':<{width}}  before  target   after"]
    for name, wanted in result.target.items():
        before, after = result.values_before[name], result.values_after[name]
        lines.append(f"{name:<{width}}  {before:+6.2f}  {wanted:+6.2f}  {after:+6.2f}")
    lines += [
        "",
        f"consistency {result.consistency:.3f} (fwd {result.fwd:.3f}, bwd {result.bwd:.3f}), "
        f"L2 {result.l2:.3f}, cosine {result.cosine:.3f}, "
        f"{'success' if result.success else 'no success'}",
    ]
    if not result.finished:
        lines.append("the rewrite was cut at the rewriter's length limit")
    return "\n".join(lines)


def rewrite_file(pipeline: Pipeline, options: RewriteOptions) -> int:
    """Rewrite the rows of --input into --output."""
    assert options.input is not None and options.output is not None

    def read(data: dict[str, Any]) -> RewriteRequest:
        request = to_request(data)
        pipeline.check(request)
        return request

    def process(requests: Sequence[RewriteRequest]) -> list[dict[str, Any] | ValueError]:
        return _rewrite_chunk(pipeline, requests, options)

    counts = through(options.input, options.output, read, process, options.batch_size, "rewrite")
    if options.json:
        record = {"output": str(options.output), **vars(counts)}
        print(json.dumps(record))
    else:
        print(f"{counts.written} rows written to {options.output}, {counts.rejected} set aside")
    return 0 if counts.written or not counts.rejected else 1


def to_request(data: dict[str, Any]) -> RewriteRequest:
    """The request of a row; keys beside its four fields are left alone. Raises ValueError."""
    for name in ("query", "response"):
        if data.get(name) is None:
            raise ValueError(f"field {name!r} is missing")
    target = data.get("target")
    if target is not None and not isinstance(target, (str, dict)):
        raise ValueError("field 'target' must be an object of value names and numbers, or text")
    return RewriteRequest(
        query=data["query"],
        response=data["response"],
        instruction=data.get("instruction"),
        target=target,
    )


def _rewrite_chunk(
    pipeline: Pipeline, requests: Sequence[RewriteRequest], options: RewriteOptions
) -> list[dict[str, Any] | ValueError]:
    """Rows to add in order; the error of those whose prompt is too long for the rewriter."""
    before, targets = pipeline.targets(requests, options.batch_size)
    answers: list[dict[str, Any] | ValueError] = []
    fitting: list[int] = []
    for i, request in enumerate(requests):
        try:
            pipeline.rewriter.prompt(request.query, request.response, targets[i])
            fitting.append(i)
            answers.append({})
        except ValueError as error:
            answers.append(error)
    chosen = torch.tensor(fitting, dtype=torch.long)
    results = pipeline.rewrite_towards(
        [requests[i] for i in fitting],
        before[chosen],
        targets[chosen],
        temperature=options.temperature,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    for i, result in zip(fitting, results, strict=True):
        answers[i] = result.to_dict()
    return answers
