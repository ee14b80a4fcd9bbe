"""The whole job on the embedded corpus: data, detector, translator, fact analyzer, rewriter (SFT,
GRPO), evaluation, report.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
from visa_core.training.targets import predicted_targets, recorded_targets
from visa_core.types import RewriteExample
from visa_core.values import SCHWARTZ
from visa_trainers import detector, grpo, nli, recipe, sft, translator

log = logging.getLogger("visa_trainers.quickstart")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The whole job on the embedded corpus."""

    out: Path = Path("visa-out")
    """Folder for data, models and report."""
    seed: int = 0
    """Seed of everything."""
    smoke: bool = False
    """A run of seconds that only shows that every part works."""


def run(config: QuickstartConfig) -> Path:
    """Run all stages and write the report; returns the path of report.json."""
    sizes = recipe.SMOKE if config.smoke else recipe.FULL
    out, seconds = config.out, {}
    data = out / "data"
    with timed("data", seconds):
        write_data(data, sizes, config.seed)
    for name, stage in (("detector", detector), ("translator", translator), ("nli", nli)):
        folder = out / ("fact_analyzer" if name == "nli" else name)
        with timed(name, seconds):
            stage.train(getattr(recipe, name)(data, folder, sizes, config.seed))
    with timed("base", seconds):
        start_model(data, config.seed).save_pretrained(out / "init")
        sft.train(recipe.base(data, out / "init", out / "base", sizes, config.seed))
    with timed("sft", seconds):
        sft.train(recipe.sft(data, out / "base", out / "sft", sizes, config.seed))
    with timed("grpo", seconds):
        grpo.train(recipe.grpo(data, out, out / "sft", out / "grpo", sizes, config.seed))
    write_system(out, rewriter="grpo")
    with timed("evaluation", seconds):
        evaluation = evaluate_all(out, config.seed)
    return write_report(
        out,
        evaluation,
        timing=seconds,
        config={**asdict(config), "sizes": asdict(sizes)},
        curves={"grpo": out / "grpo" / "metrics.jsonl"},
    )


def write_data(folder: Path, sizes: recipe.Sizes, seed: int) -> None:
    """All data sets as JSON lines, each from its own seed, so that none repeats another's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {name: 10 * seed + i for i, name in enumerate(("train", "reinforce", "held_out"))}
    tasks = embedded.rewrites(sizes.tasks, seeds["reinforce"])
    sets = {
        "dialogues": embedded.dialogues(sizes.dialogues, seeds["train"]),
        "instructions": embedded.rewrites(sizes.instructions, seeds["train"] + 5),
        "nli": embedded.nli_pairs(sizes.nli_pairs, seeds["train"]),
        "paraphrases": embedded.paraphrases(sizes.paraphrases, seeds["train"]),
        "triplets": embedded.rewrites(sizes.triplets, seeds["train"], embedded.ReferenceNoise()),
        "tasks": [replace(t, reference=None, target=None, values=None) for t in tasks],
        "preferences": embedded.preferences(sizes.preferences, seeds["train"]),
        "held_out": embedded.rewrites(sizes.held_out, seeds["held_out"]),
    }
    for name, records in sets.items():
        write_jsonl(folder / f"{name}.jsonl", records)


def start_model(data: Path, seed: int) -> Rewriter:
    """The untrained rewriter, its tokenizer built from the training texts."""
    rows = read_jsonl_strict(data / "triplets.jsonl", RewriteExample)
    rows += read_jsonl_strict(data / "paraphrases.jsonl", RewriteExample)
    texts = [text for r in rows for text in (r.query, r.response)]
    return Rewriter.small(texts, **recipe.MODEL, seed=seed)


def evaluate_all(out: Path, seed: int) -> Evaluation:
    """Vanilla, SFT and GRPO on the held-out prompts, sampled and greedy, towards the targets a
    user would get.
    """
    examples = read_jsonl_strict(out / "data" / "held_out.jsonl", RewriteExample)
    detects = Detector.from_pretrained(out / "detector")
    targets = predicted_targets(
        examples, detects, Translator.from_pretrained(out / "translator"), SCHWARTZ
    )
    methods = {}
    for name, folder in (("vanilla", "base"), ("sft", "sft"), ("grpo", "grpo")):
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


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Log a stage's start and keep its seconds."""
    log.info("%s", name)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
