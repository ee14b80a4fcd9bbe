"""`visa capability`: MMLU and MATH-500 of one model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from visa_core.commands.capability_options import CapabilityOptions
from visa_core.endpoints import ChatModel, open_chat
from visa_core.endpoints.local import LocalChat
from visa_core.evaluation import tables
from visa_core.evaluation.capability.math500 import evaluate_math, read_problems, self_agreement
from visa_core.evaluation.capability.mmlu import evaluate_mmlu, read_subjects, shuffled
from visa_core.evaluation.capability.scorer import AnswerScorer
from visa_core.evaluation.intervals import shown
from visa_core.evaluation.journal import Journal
from visa_core.evaluation.pairwise.models import identity, public
from visa_core.models.rewriter import Rewriter
from visa_core.training.checkpoint import write_file
from visa_core.training.supervised import pick_device

DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


def run(options: CapabilityOptions) -> int:
    """Measure, write the report, print it."""
    record = measure(options)
    text = markdown(record)
    if options.out is not None:
        write_file(options.out / "capability.md", text)
        write_file(options.out / "capability.json", tables.to_json(record))
    print(json.dumps(record, indent=1) if options.json else text)
    return 0


def measure(options: CapabilityOptions) -> dict[str, Any]:
    """Accuracies with intervals; files are read before the model, so that a bad one is told at
    once.
    """
    subjects = read_subjects(options.mmlu, options.shots) if options.mmlu else []
    subjects = [replace(s, items=s.items[: options.n]) for s in subjects]
    subjects = shuffled(subjects, options.seed) if options.shuffle else subjects
    problems = read_problems(options.math500)[: options.n] if options.math500 else []
    record: dict[str, Any] = {"model": public(options.tested)}
    chat, model = _opened(options)
    if problems:
        assert options.out is not None
        with Journal(options.out / "math500.jsonl") as journal:
            record["math500"] = evaluate_math(
                chat,
                identity(options.tested),
                problems,
                journal,
                temperature=options.temperature,
                max_tokens=options.max_tokens,
                seed=options.seed,
            )
        record["math500"]["checker"] = self_agreement(problems)
    if subjects:
        assert model is not None
        scorer = AnswerScorer(model.model, token_budget=options.token_budget, packed=options.packed)
        record["mmlu"] = evaluate_mmlu(scorer, model.tokenizer, subjects, options.form)
    return record


def _opened(options: CapabilityOptions) -> tuple[ChatModel, Rewriter | None]:
    """The model as a chat model and, for a local folder, its weights, loaded once."""
    if options.tested.base_url:
        return open_chat(options.tested), None
    folder = Path(options.tested.model)
    model = Rewriter.from_pretrained(folder, dtype=DTYPES[options.dtype])
    model.model.to(pick_device(options.tested.device)).eval()
    return LocalChat(model, model.engine(), folder.name, options.tested.batch_size), model


def markdown(record: Mapping[str, Any]) -> str:
    """The report for people."""
    parts = [f"# Capability of {record['model']['model']}\n", "95 % intervals (Wilson).\n"]
    if "mmlu" in record:
        mmlu = record["mmlu"]
        parts += [
            f"## MMLU, {mmlu['shots']} examples, by {mmlu['form']}\n",
            "The prompts are this project's own, so that figures of other harnesses differ. "
            f"Chance is 0.25; one letter to all would get {mmlu['best_constant']:.3f}.\n",
            _table({"all questions": mmlu["accuracy"], **mmlu["subjects"]}),
            f"Mean of subjects {mmlu['mean_of_subjects']:.3f}. Chosen: {_counts(mmlu['chosen'])}; "
            f"right: {_counts(mmlu['right'])}.\n",
        ]
    if "math500" in record:
        result = record["math500"]
        levels = {f"level {level}": entry for level, entry in result["levels"].items()}
        checker = result["checker"]
        parts += [
            "## MATH-500, checked by math-verify\n",
            _table({"all problems": result["accuracy"], **levels, **result["subjects"]}),
            f"{result['cut']} answers were cut at {result['max_tokens']} tokens; "
            f"{sum(result['missing'].values())} never came.\n",
            "The checker on these problems: their answers equal themselves in "
            f"{shown(checker['themselves'])}, their own solutions in "
            f"{shown(checker['their_solutions'])}, another problem's answer in "
            f"{shown(checker['another_answer'])}.\n",
        ]
    return "\n".join(parts)


def _table(rows: Mapping[str, dict[str, Any]]) -> str:
    lines = "".join(f"| {name} | {shown(entry)} |\n" for name, entry in rows.items())
    return "| | accuracy |\n| --- | --- |\n" + lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
