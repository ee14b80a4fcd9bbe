"""Train the Translator: the change of values an instruction asks for, by regression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from visa_core.config import TranslatorConfig, with_recipe
from visa_core.data.sources import load_rewrite_examples
from visa_core.models.translator import Translator
from visa_core.training.run import open_run
from visa_core.training.supervised import LengthPlan, Updater, pick_device, write_result
from visa_core.types import RewriteExample
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ


def train(config: TranslatorConfig) -> Path:
    """Train a Translator and save it in `config.out`; returns that folder."""
    config = with_recipe(config)
    device = pick_device(config.device)
    space = ValueSpace.from_file(config.space) if config.space else SCHWARTZ
    examples = load_rewrite_examples(config.data, space)
    torch.manual_seed(config.seed)
    model = build_model(config, space, examples).to(device).train()
    tokens = model.tokenize(*columns(examples))
    shifts = torch.stack([space.vector(row.shift or {}, model.limit) for row in examples])
    plan = LengthPlan([len(row) for row in tokens], config.batch_size, config.epochs, config.seed)
    updater = Updater.described(model, plan.total_steps, config)
    run = open_run(config, plan.total_steps, {"model": model, "updater": updater}, "translator")
    for step in run.steps():
        batch = plan.rows(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            scores, _ = model([tokens[row] for row in batch])
        loss = F.mse_loss(scores.float(), shifts[batch].to(device))
        run.log(step, updater.update(loss, step))
    updater.use_average()
    write_result(config.out, model.eval().write)
    return config.out


def columns(examples: Sequence[RewriteExample]) -> tuple[list[str], list[str], list[str]]:
    """Instructions, queries and responses of the examples."""
    return (
        [row.instruction for row in examples],
        [row.query for row in examples],
        [row.response for row in examples],
    )


def build_model(
    config: TranslatorConfig, space: ValueSpace, examples: Sequence[RewriteExample]
) -> Translator:
    """A Translator on the asked-for backbone; the built-in one gets its vocabulary from the
    examples.
    """
    return Translator.create(
        config.backbone,
        texts=[text for column in columns(examples) for text in column],
        space=space,
        pooling=config.pooling,
        max_length=config.max_length,
        hidden_size=config.hidden_size,
        layers=config.layers,
    )
