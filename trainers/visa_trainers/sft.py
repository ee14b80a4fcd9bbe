"""Supervised fine-tuning of the rewriter: cross entropy on the reference rewrite, given query,
response and target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from visa_core.config import SFTConfig
from visa_core.data.rewriting import load_rewriting
from visa_core.models.rewriter import Rewriter
from visa_core.training.adapters import put_adapter, write_adapted
from visa_core.training.distributed import World, joined_world
from visa_core.training.forward import autocast, completion_logits
from visa_core.training.fp8 import put_fp8
from visa_core.training.learner import DTYPES, finish_run, make_learner
from visa_core.training.run import batch_rows, open_run
from visa_core.training.stage import load_rewriter, report_set_aside
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
    with joined_world(config.device) as world:
        rewriter = load_rewriter(config)
        put_adapter(rewriter, config.lora, config.seed)
        rewriter.model.to(world.device, DTYPES[config.weights]).train()
        rows = encode(
            rewriter, load_rewriting(config.data, rewriter.space, references=True, seed=config.seed)
        )
        return fit(rewriter, rows, config, world, "sft", partial(write_adapted, rewriter))


def fit(
    rewriter: Rewriter,
    rows: list[Row],
    config: SFTConfig,
    world: World,
    stage: str,
    write: Callable[[Path], None],
) -> Path:
    """Cross entropy on the rows' completions, then `write` into `config.out`; returns it."""
    model, step_rows = rewriter.model, config.batch_size * config.accumulation
    total_steps = config.steps or max(1, round(config.epochs * len(rows) / step_rows))
    if config.fp8:
        put_fp8(model)
    learner = make_learner(model, config, total_steps, world)
    run = open_run(config, total_steps, {"learner": learner}, stage, world)
    for step in run.steps():
        chosen = batch_rows(len(rows), step_rows, config.seed, step).tolist()
        tokens = sum(len(rows[i].completion) for i in chosen)
        mine = [rows[chosen[i]] for i in world.share(step_rows)]
        loss = torch.zeros((), device=world.device)
        for micro, weight in passes(mine, rows[chosen[0]], config.token_budget, world):
            part = weight * learner.forward(nll, micro, tokens, rewriter.pad_id, config)
            learner.backward(part)
            loss += part.detach()
        metrics = {"loss": world.sum(loss), "tokens": float(tokens)}
        run.log(step, metrics | learner.step(step))
    finish_run(world, learner, config.out, write)
    return config.out


def passes(
    mine: list[Row], spare: Row, budget: int, world: World
) -> Iterator[tuple[list[Row], float]]:
    """This rank's forward passes of a step, each with the weight of its loss: its rows packed, then
    empty work (`spare` at weight 0) until it has as many passes as the busiest rank.
    """
    micros = list(micro_batches(mine, budget)) if mine else []
    for micro in micros:
        yield micro, 1.0
    for _ in range(world.most(len(micros)) - len(micros)):
        yield [spare], 0.0


def micro_batches(rows: list[Row], budget: int) -> Iterator[list[Row]]:
    """Rows in as few forward passes of at most `budget` tokens as first-fit finds."""
    for chosen in pack_to_budget([len(r.prompt) + len(r.completion) for r in rows], budget):
        yield [rows[i] for i in chosen]


def nll(
    model: torch.nn.Module, rows: list[Row], tokens: int, pad_id: int, config: SFTConfig
) -> torch.Tensor:
    """These rows' part of the mean cross entropy over the step's `tokens`, all ranks' together."""
    with autocast(model.device, config.precision):
        logits, ids = completion_logits(
            model, [r.prompt for r in rows], [r.completion for r in rows], pad_id
        )
    return -token_logprobs(logits, ids).sum() / tokens


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
