"""Plain supervised fine-tuning of a chat model: question -> answer, as its chat template asks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visa_core.config.plain import PlainConfig
from visa_core.data.plain import PlainExample, load_plain
from visa_core.data.schema import report_rejected
from visa_core.endpoints.chat import message
from visa_core.endpoints.local import conversation_ids
from visa_core.models.rewriter import Rewriter
from visa_core.training.adapters import put_adapter, write_adapted
from visa_core.training.distributed import joined_world
from visa_core.training.learner import DTYPES
from visa_core.training.stage import load_rewriter, report_set_aside
from visa_trainers.sft import Row, fit


def train(config: PlainConfig) -> Path:
    """Fine-tune the model and save it in `config.out` as a plain model folder; returns it."""
    with joined_world(config.device) as world:
        opened = load_rewriter(config)
        put_adapter(opened, config.lora, config.seed)
        opened.model.to(world.device, DTYPES[config.weights]).train()
        examples, rejected = load_plain(config.data, config.fields)
        report_rejected(rejected, len(examples) + len(rejected))
        rows = encode(opened, examples)

        def write(folder: Path) -> None:
            opened.model.save_pretrained(folder)
            opened.tokenizer.save_pretrained(folder)

        return fit(
            opened, rows, config, world, "plain", partial(write_adapted, opened, write=write)
        )


def encode(opened: Rewriter, examples: list[PlainExample]) -> list[Row]:
    """Token ids of questions up to where the answer begins, and of answers with their end; rows
    beyond the limits are set aside and counted in a warning.
    """
    rows, problems = [], []
    for number, example in enumerate(examples, 1):
        prompt = conversation_ids(opened.tokenizer, [message("user", example.question)])
        try:
            if len(prompt) > opened.max_prompt:
                raise ValueError(
                    f"the question has {len(prompt)} tokens, more than max_prompt = "
                    f"{opened.max_prompt}: raise --max-prompt"
                )
            rows.append(Row(prompt, opened.completion_ids(example.answer)))
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    report_set_aside(problems, len(examples))
    return rows
