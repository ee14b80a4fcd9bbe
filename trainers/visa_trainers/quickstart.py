"""The whole job on the embedded corpus: data, detector, translator, fact analyzer, rewriter (SFT,
GRPO), evaluation, report.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from visa_core.data import embedded
from visa_core.data.embedded import truth
from visa_core.data.schema import read_jsonl_strict, write_jsonl
from visa_core.evaluation.evaluate import Evaluation, evaluate
from visa_core.evaluation.report import write_report
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.pipeline import write_system
from visa_core.training.checkpoint import CheckpointError, write_file
from visa_core.training.run import RunFinished, epoch_order
from visa_core.training.targets import predicted_targets, recorded_targets
from visa_core.types import RewriteExample
from visa_core.values import SCHWARTZ
from visa_trainers import detector, dpo, grpo, nli, recipe, sft, simpo, translator

REWRITERS = {"vanilla": "base", "sft": "sft", "dpo": "dpo", "simpo": "simpo", "grpo": "grpo"}
"""Folders of the rewriters by method."""
BASELINES = ("dpo", "simpo")
"""Those that are trained on demand."""

log = logging.getLogger("visa_trainers.quickstart")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The whole job on the embedded corpus."""

    out: Path = Path("visa-out")
    """Folder for data, models and report."""
    seed: int = 0
    """Seed of everything."""
    smoke: bool = False
    """A short run that only shows that every part works."""
    baselines: bool = False
    """Train by DPO and SimPO too, from the same SFT model and with the same reward as GRPO. Can be
    added to a finished run."""


def run(config: QuickstartConfig) -> Path:
    """Run all stages and write the report; returns the path of report.json.

    A run that was stopped goes on where it was when it is started again with the same settings.
    """
    sizes = recipe.SMOKE if config.smoke else recipe.FULL
    out, seed, data = config.out, config.seed, config.out / "data"
    record = {"seed": seed, "smoke": config.smoke, "sizes": asdict(sizes)}
    claim_folder(out, record)
    job = Job()
    with job.timed("data"):
        write_data(data, sizes, seed)
    job.stage("detector", detector.train, recipe.detector(data, out / "detector", sizes, seed))
    job.stage(
        "translator", translator.train, recipe.translator(data, out / "translator", sizes, seed)
    )
    job.stage("nli", nli.train, recipe.nli(data, out / "fact_analyzer", sizes, seed))
    start_model(data, seed).save_pretrained(out / "init")
    job.stage("base", sft.train, recipe.base(data, out / "init", out / "base", sizes, seed))
    job.stage("sft", sft.train, recipe.sft(data, out / "base", out / "sft", sizes, seed))
    job.stage("grpo", grpo.train, recipe.grpo(data, out, out / "sft", out / "grpo", sizes, seed))
    if config.baselines:
        job.stage("dpo", dpo.train, recipe.dpo(data, out, out / "sft", out / "dpo", sizes, seed))
        settings = recipe.simpo(data, out, out / "sft", out / "simpo", sizes, seed)
        job.stage("simpo", simpo.train, settings)
    write_system(out, rewriter="grpo")
    with job.timed("evaluation"):
        evaluation = evaluate_all(out, seed, config.baselines)
    return write_report(
        out,
        evaluation,
        timing=job.seconds,
        config=record | {"recipe": recipe.described(data, out, sizes, seed, config.baselines)},
        curves={"grpo": out / "grpo" / "metrics.jsonl"},
    )


def claim_folder(out: Path, record: dict[str, Any]) -> None:
    """Mark `out` as this quickstart's; raises CheckpointError when it holds other settings."""
    path = out / "quickstart.json"
    if path.is_file() and json.loads(path.read_text()) != record:
        raise CheckpointError(
            f"{out} holds a quickstart with other settings; choose another --out, or delete it"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make {out}: {error}. Choose a writable --out.") from error
    write_file(path, json.dumps(record, indent=1) + "\n")


class Job:
    """The stages of one quickstart, their seconds, and what is already done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Log a stage's start and keep its seconds."""
        log.info("%s", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)

    def stage(self, name: str, train: Callable[[Any], Path], settings: Any) -> None:
        """Train one part, going on from its checkpoint; a finished one is left as it is."""
        resume = (settings.out / "run.json").is_file()
        try:
            with self.timed(name):
                train(replace(settings, resume=resume))
        except RunFinished:
            log.info("%s is already done", name)


def write_data(folder: Path, sizes: recipe.Sizes, seed: int) -> None:
    """All data sets as JSON lines, each from its own seed, so that none repeats another's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {name: 10 * seed + i for i, name in enumerate(("train", "reinforce", "held_out"))}
    tasks = embedded.rewrites(sizes.tasks, seeds["reinforce"])
    tasks = [replace(t, reference=None, target=None, values=None) for t in tasks]
    sets = {
        "dialogues": embedded.dialogues(sizes.dialogues, seeds["train"]),
        "instructions": embedded.rewrites(sizes.instructions, seeds["train"] + 5),
        "nli": embedded.nli_pairs(sizes.nli_pairs, seeds["train"]),
        "paraphrases": mixed(
            embedded.paraphrases(sizes.paraphrases, seeds["train"]),
            embedded.glossary(sizes.glossary, seeds["train"]),
            seed,
        ),
        "triplets": embedded.rewrites(sizes.triplets, seeds["train"], embedded.ReferenceNoise()),
        "tasks": tasks,
        Path(recipe.PAIR_TASKS).stem: tasks[: recipe.pair_tasks(sizes)],
        "preferences": embedded.preferences(sizes.preferences, seeds["train"]),
        "held_out": embedded.rewrites(sizes.held_out, seeds["held_out"]),
    }
    for name, records in sets.items():
        write_jsonl(folder / f"{name}.jsonl", records)


def mixed(
    first: list[RewriteExample], second: list[RewriteExample], seed: int
) -> list[RewriteExample]:
    """Both lists in one seeded random order."""
    rows = first + second
    return [rows[i] for i in epoch_order(len(rows), seed, 0).tolist()]


def start_model(data: Path, seed: int) -> Rewriter:
    """The untrained rewriter, its tokenizer built from the training texts."""
    rows = read_jsonl_strict(data / "triplets.jsonl", RewriteExample)
    rows += read_jsonl_strict(data / "paraphrases.jsonl", RewriteExample)
    texts = [text for r in rows for text in (r.query, r.response)]
    return Rewriter.small(texts, **recipe.MODEL, seed=seed)


def evaluate_all(out: Path, seed: int, baselines: bool = False) -> Evaluation:
    """All rewriters on the held-out prompts, sampled and greedy, towards the targets a user would
    get.
    """
    examples = read_jsonl_strict(out / "data" / "held_out.jsonl", RewriteExample)
    detects = Detector.from_pretrained(out / "detector")
    targets = predicted_targets(
        examples, detects, Translator.from_pretrained(out / "translator"), SCHWARTZ
    )
    methods = {}
    for name, folder in REWRITERS.items():
        if name in BASELINES and not baselines:
            continue
        rewriter = Rewriter.from_pretrained(out / folder)
        for suffix, temperature in (("", recipe.TEMPERATURE), ("_greedy", 0.0)):
            methods[name + suffix] = rewriter.rewrite(
                [e.query for e in examples],
                [e.response for e in examples],
                targets,
                temperature=temperature,
                seed=seed,
                batch_size=128,
            )
    facts = FactAnalyzer.from_pretrained(out / "fact_analyzer")
    return evaluate(examples, targets, methods, detects, facts, truth=KnownTruth(examples))


class KnownTruth:
    """Truth about rewrites of the held-out prompts, against the true targets and not the predicted
    ones.
    """

    def __init__(self, examples: list[RewriteExample]) -> None:
        targets = recorded_targets(examples, SCHWARTZ)
        self.targets = {e.response: target for e, target in zip(examples, targets, strict=True)}

    def __call__(self, source: str, rewrite: str, target: torch.Tensor) -> dict[str, float]:
        """`target`, the predicted one, is not used."""
        return truth.score(source, rewrite, self.targets[source])
