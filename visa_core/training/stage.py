"""What the rewriter's stages share: the model to start from, its optimizer, records set aside."""

from __future__ import annotations

import logging

import torch

from visa_core.config import RewriterTraining
from visa_core.models.rewriter import Rewriter
from visa_core.training.optim import Optimizer
from visa_core.types import RewriteExample

log = logging.getLogger("visa_core.training")


def report_set_aside(problems: list[str], total: int) -> None:
    """Warn about records that cannot be trained on; raises ValueError when none is left."""
    if problems:
        log.warning("%d of %d records set aside; the first: %s", len(problems), total, problems[0])
    if len(problems) == total:
        raise ValueError(f"none of the {total} records can be trained on; the first: {problems[0]}")


def load_rewriter(config: RewriterTraining) -> Rewriter:
    """The rewriter to start from, with the run's limits."""
    rewriter = Rewriter.from_pretrained(config.model, template=config.template)
    rewriter.max_prompt, rewriter.max_completion = config.max_prompt, config.max_completion
    return rewriter


def make_optimizer(model: torch.nn.Module, config: RewriterTraining, total_steps: int) -> Optimizer:
    """The optimizer that the settings describe."""
    return Optimizer(
        model,
        total_steps,
        lr=config.lr,
        name=config.optimizer,
        muon_lr=config.muon_lr,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
        max_grad_norm=config.max_grad_norm,
    )


def fitting(rewriter: Rewriter, examples: list[RewriteExample]) -> list[RewriteExample]:
    """Records whose prompt fits the limit whatever the target; the others are set aside and
    counted in a warning.
    """
    kept, problems = [], []
    longest_target = torch.full((rewriter.space.size,), -0.5)
    for example in examples:
        try:
            rewriter.prompt(example.query, example.response, longest_target)
            kept.append(example)
        except ValueError as error:
            problems.append(f"{example.id or 'a record'}: {error}")
    report_set_aside(problems, len(examples))
    return kept
