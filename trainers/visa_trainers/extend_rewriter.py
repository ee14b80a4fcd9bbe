"""Extend a rewriter by new values: widened, taught with rehearsal, as an adapter, and plainly to
compare.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from visa_core.config.extend import ExtendRewriterConfig
from visa_core.data.rewriting import load_rewriting
from visa_core.evaluation.evaluate import evaluate
from visa_core.evaluation.rewriter_forgetting import chosen_way, write_report
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.growth import grown_rewriter
from visa_core.models.rewriter import Rewriter
from visa_core.training.run import RunFinished
from visa_core.training.targets import recorded_targets
from visa_core.types import RewriteExample
from visa_core.value_space import ValueSpace
from visa_trainers import sft

log = logging.getLogger("visa_trainers.extend")

FIGURES = ("jsr", "consistency", "fwd", "bwd", "l2", "mad")


def train(config: ExtendRewriterConfig) -> Path:
    """Widen, and with rehearsal data train all ways and measure them; returns the path of
    forgetting.json, or of the widened folder.
    """
    space = ValueSpace.from_file(config.space)
    start = widen(config, space)
    if not config.rehearsal:
        return start
    assert config.detector is not None and config.fact_analyzer is not None
    detector = Detector.from_pretrained(config.detector)
    if detector.space.names != space.names:
        raise ValueError(f"--detector {config.detector}: its values are not those of --space")
    facts = FactAnalyzer.from_pretrained(config.fact_analyzer)
    held_out = {
        "old": load_rewriting(config.held_out_old, space, seed=config.seed),
        "new": load_rewriting(config.held_out, space, seed=config.seed),
    }
    train_ways(config, start)
    ways = (*config.protected, "plain")
    folders = {"before": config.model} | {way: config.out / way for way in ways}
    texts = {name: rewrites_of(folder, held_out, config) for name, folder in folders.items()}
    measured: dict[str, dict[str, Any]] = {}
    for kind, tasks in held_out.items():
        methods = {name: own[kind] for name, own in texts.items() if kind in own}
        targets = recorded_targets(tasks, space)
        result = evaluate(tasks, targets, methods, detector, facts, space=space)
        measured[kind] = {
            name: {key: value for key, value in summary.items() if key.startswith(FIGURES)}
            for name, summary in result.summaries().items()
        }
    chosen = chosen_way(measured, config.protected, config.tolerance)
    Rewriter.from_pretrained(config.out / chosen).save_pretrained(config.out / "model")
    old_space = Rewriter.from_pretrained(config.model).space
    record = {
        "old": list(old_space.names),
        "new": [name for name in space.names if name not in old_space.names],
        "chosen": chosen,
        "tasks": {kind: len(tasks) for kind, tasks in held_out.items()},
        "measured": measured,
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
    }
    return write_report(config.out, record)


def train_ways(config: ExtendRewriterConfig, start: Path) -> None:
    """Train every way from the widened rewriter; what is there is left as it is."""
    wide, old = Rewriter.from_pretrained(start), Rewriter.from_pretrained(config.model)
    size, before = (len(r.model.get_input_embeddings().weight) for r in (wide, old))
    limits = {"max_prompt": wide.max_prompt, "max_completion": wide.max_completion}
    for way in (*config.protected, "plain"):
        try:
            sft.train(config.sft(way, limits, before if size > before else 0))
        except RunFinished:
            log.info("%s is there already", config.out / way)


def widen(config: ExtendRewriterConfig, space: ValueSpace) -> Path:
    """Write the widened rewriter into OUT/start, where it is not yet; returns that folder."""
    folder = config.out / "start"
    if (folder / "config.json").is_file():
        return folder
    rewriter = Rewriter.from_pretrained(config.model)
    texts: list[str] = []
    if config.add_words:
        for row in load_rewriting(config.data, space, seed=config.seed):
            texts += [row.query, row.response, row.reference or ""]
    torch.manual_seed(config.seed)
    grown_rewriter(rewriter, space, texts).save_pretrained(folder)
    return folder


def rewrites_of(
    folder: Path, held_out: dict[str, list[RewriteExample]], config: ExtendRewriterConfig
) -> dict[str, list[str]]:
    """Rewrites of the held-out tasks by kind; of new values where the model's space has them."""
    rewriter = Rewriter.from_pretrained(folder)
    found = {}
    for kind, tasks in held_out.items():
        if not all(set(task.target or {}) <= set(rewriter.space.names) for task in tasks):
            continue
        found[kind] = rewriter.rewrite(
            [task.query for task in tasks],
            [task.response for task in tasks],
            recorded_targets(tasks, rewriter.space),
            temperature=config.temperature,
            seed=config.seed,
        )
    return found
