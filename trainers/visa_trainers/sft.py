"""Supervised fine-tuning of the rewriter: cross entropy on the reference rewrite, given query,
response and target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from visa_core.config import SFTConfig
from visa_core.data.rewriting import load_rewriting
from visa_core.models.rewriter import Rewriter
from visa_core.training.forward import autocast, completion_logits
from visa_core.training.run import batch_rows, open_run
from visa_core.training.stage import load_rewriter, make_optimizer, report_set_aside
from visa_core.training.supervised import pick_device, write_result
from visa_core.training.targets import recorded_targets
from visa_core.types import RewriteExample
from visa_kernels import pack_to_budget, token_logprobs


@dataclass(frozen=True)
class Row:
    """Token ids of one training row."""

    prompt: list[int]
    completion: list[int]


def train(config: SFTConfig) -> Path:
    """Fine-tune the rewriter and save it in `config.out`; returns that folder."""
    device = pick_device(config.device)
    rewriter = load_rewriter(config)
    model = rewriter.model.float().to(device).train()
    rows = encode(
        rewriter, load_rewriting(config.data, rewriter.space, references=True, seed=config.seed)
    )
    step_rows = config.batch_size * config.accumulation
    total_steps = config.steps or max(1, round(config.epochs * len(rows) / step_rows))
    optimizer = make_optimizer(model, config, total_steps)
    run = open_run(config, total_steps, {"model": model, "optimizer": optimizer}, "sft")
    for step in run.steps():
        batch = [rows[i] for i in batch_rows(len(rows), step_rows, config.seed, step).tolist()]
        tokens = sum(len(row.completion) for row in batch)
        loss = torch.zeros((), device=device)
        for micro in micro_batches(batch, config.token_budget):
            loss += backward(model, micro, tokens, rewriter.pad_id, config)
        run.log(step, {"loss": loss, "tokens": float(tokens), **optimizer.step(step)})
    model.eval()
    write_result(config.out, rewriter.write)
    return config.out


def micro_batches(rows: list[Row], budget: int) -> Iterator[list[Row]]:
    """The rows of a step in as few forward passes of at most `budget` tokens as first-fit finds."""
    for chosen in pack_to_budget([len(r.prompt) + len(r.completion) for r in rows], budget):
        yield [rows[i] for i in chosen]


def backward(
    model: torch.nn.Module, rows: list[Row], tokens: int, pad_id: int, config: SFTConfig
) -> torch.Tensor:
    """Add the gradient of one micro-batch; its part of the mean cross entropy over the step's
    `tokens`.
    """
    with autocast(model.device, config.precision):
        logits, ids = completion_logits(
            model, [r.prompt for r in rows], [r.completion for r in rows], pad_id
        )
    loss = -token_logprobs(logits, ids).sum() / tokens
    loss.backward()
    return loss.detach()


def encode(rewriter: Rewriter, examples: list[RewriteExample]) -> list[Row]:
    """Token ids of all records; those that do not fit the limits are set aside and counted in a
    warning.
    """
    rows, problems = [], []
    targets = recorded_targets(examples, rewriter.space)
    for example, target in zip(examples, targets, strict=True):
        try:
            prompt = rewriter.prompt(example.query, example.response, target).ids
            rows.append(Row(prompt, rewriter.completion_ids(example.reference or "")))
        except ValueError as error:
            problems.append(f"{example.id or 'a record'}: {error}")
    report_set_aside(problems, len(examples))
    return rows
