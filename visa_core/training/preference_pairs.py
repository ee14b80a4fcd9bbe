"""Pairs of rewrites for DPO and SimPO, made of rewriting records and kept in a file.

The file is a journal: a run that was stopped goes on with the records it has no pair of yet, and
another run may train on the same pairs (`--pair-file`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from visa_core.config.preference import PreferenceTraining
from visa_core.data.rewriting import load_rewriting
from visa_core.data.schema import DataError, check_text
from visa_core.evaluation.journal import Journal, content_key, read_journal
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.rewards import RewardModel
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.checkpoint import CheckpointError, list_checkpoints
from visa_core.training.run import step_seed
from visa_core.training.stage import fitting, report_set_aside
from visa_core.training.targets import predicted_targets, recorded_targets
from visa_core.types import RewriteExample, VectorDict
from visa_core.values import ValueSpace

PAIR_FILE = "pairs.jsonl"
CHUNK = 64
"""Records that are sampled and scored at once. A chunk that a kill left half done is made anew as a
whole, so that its rows come out the same."""

log = logging.getLogger("visa_core.training")


@dataclass(frozen=True, kw_only=True)
class RewritePair:
    """Two rewrites of one response towards one target; margin is by how much the chosen one's
    reward is larger, where rewards ranked them.
    """

    query: str
    response: str
    target: VectorDict
    chosen: str
    rejected: str
    margin: float | None = None


def prepare_pairs(config: PreferenceTraining, rewriter: Rewriter) -> list[RewritePair]:
    """The pairs to train on: of `config.pair_file`, or made as the settings say and kept in the
    run's folder.

    Raises ValueError when none is left, and CheckpointError when the folder holds another run.
    """
    if config.pair_file is not None:
        return read_pairs(config.pair_file, rewriter.space)
    if not config.resume and list_checkpoints(config.out):
        raise CheckpointError(
            f"{config.out} holds an unfinished run: continue it with --resume, or choose another "
            "--out, or delete its folder 'checkpoints'"
        )
    kept = config.out / PAIR_FILE
    with Journal(kept) as journal:
        examples = load_rewriting(
            config.data, rewriter.space, references=config.pairs != "ranked", seed=config.seed
        )
        examples = fitting(rewriter, examples)
        makers = {"source": _from_sources, "sampled": _from_samples, "ranked": _from_ranks}
        keys = [_key(config, index, example) for index, example in enumerate(examples)]
        todo = [
            start
            for start in range(0, len(keys), CHUNK)
            if any(key not in journal for key in keys[start : start + CHUNK])
        ]
        make = makers[config.pairs](config, rewriter)
        for start in tqdm(todo, "pairs", unit=f"x{CHUNK}", disable=None):
            outcomes = make(examples[start : start + CHUNK], start)
            for key, outcome in zip(keys[start:], outcomes, strict=False):
                if key not in journal:
                    skipped = isinstance(outcome, str)
                    journal.put(key, {"skipped": outcome} if skipped else asdict(outcome))
        records = [journal[key] for key in keys]
    return _usable(records, kept, rewriter.space)


def read_pairs(path: Path, space: ValueSpace) -> list[RewritePair]:
    """Pairs of a file that an earlier run made. Raises DataError naming what is wrong."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; --pair-file is the {PAIR_FILE} of another run")
    return _usable(list(read_journal(Path(path))[0].values()), path, space)


def _usable(records: Sequence[dict[str, Any]], path: Path, space: ValueSpace) -> list[RewritePair]:
    pairs, skipped = [], []
    for record in records:
        if "skipped" in record:
            skipped.append(str(record["skipped"]))
        else:
            pairs.append(_pair(record, path, space))
    report_set_aside(skipped, len(records))
    return pairs


def _pair(record: dict[str, Any], path: Path, space: ValueSpace) -> RewritePair:
    try:
        for name in ("query", "response", "chosen", "rejected"):
            check_text(name, record.get(name))
        target = record.get("target")
        if not isinstance(target, dict):
            raise ValueError("field 'target' must be an object of value names and numbers")
        space.vector(target)
    except ValueError as error:
        raise DataError(f"{path}: pair {record.get('key')!r}: {error}") from None
    return RewritePair(**{k: v for k, v in record.items() if k != "key"})


def _key(config: PreferenceTraining, index: int, example: RewriteExample) -> str:
    """Hash of all that a record's pair depends on, the weights' path included."""
    texts = (example.query, example.response, example.instruction, example.target)
    if config.pairs == "source":
        return content_key("source", index, texts, example.reference)
    sampling = (str(config.model), config.seed, config.temperature, config.max_completion)
    if config.pairs == "sampled":
        return content_key("sampled", index, texts, example.reference, sampling)
    judges = (str(config.detector), str(config.fact_analyzer), str(config.translator))
    ranking = (config.samples, config.min_margin, judges, asdict(config.reward))
    return content_key("ranked", index, texts, sampling, ranking)


Outcomes = list[RewritePair | str]
"""The pair of every record of a chunk, or why there is none."""
Maker = Callable[[Sequence[RewriteExample], int], Outcomes]
"""(records of a chunk, place of the first) -> outcomes."""


def _from_sources(config: PreferenceTraining, rewriter: Rewriter) -> Maker:
    def make(rows: Sequence[RewriteExample], start: int) -> Outcomes:
        targets = recorded_targets(rows, rewriter.space)
        return [
            _paired(rewriter, example, target, example.reference or "", example.response)
            for example, target in zip(rows, targets, strict=True)
        ]

    return make


def _from_samples(config: PreferenceTraining, rewriter: Rewriter) -> Maker:
    def make(rows: Sequence[RewriteExample], start: int) -> Outcomes:
        targets = recorded_targets(rows, rewriter.space)
        texts, finished = _sampled(config, rewriter, rows, targets, start, 1)
        return [
            _paired(rewriter, example, targets[i], example.reference or "", texts[i])
            if finished[i]
            else "the sampled rewrite was cut at --max-completion"
            for i, example in enumerate(rows)
        ]

    return make


def _from_ranks(config: PreferenceTraining, rewriter: Rewriter) -> Maker:
    """Best and worst of a record's finished samples, by the reward."""
    assert config.detector is not None and config.fact_analyzer is not None
    device, count = rewriter.model.device, config.samples
    detector = Detector.from_pretrained(config.detector).to(device)
    translator = None
    if config.translator is not None:
        translator = Translator.from_pretrained(config.translator).to(device)
    facts = FactAnalyzer.from_pretrained(
        config.fact_analyzer, device=device, precision=config.fact_precision
    )
    scorer = RewardModel(detector, facts, config.reward)

    def make(rows: Sequence[RewriteExample], start: int) -> Outcomes:
        if translator is None:
            targets = recorded_targets(rows, rewriter.space)
        else:
            targets = predicted_targets(rows, detector, translator, rewriter.space)
        texts, finished = _sampled(config, rewriter, rows, targets, start, count)
        rewards = scorer.score(
            [e.query for e in rows for _ in range(count)],
            [e.response for e in rows for _ in range(count)],
            texts,
            targets.repeat_interleave(count, 0),
        ).reward
        outcomes: Outcomes = []
        for i, example in enumerate(rows):
            own = slice(i * count, (i + 1) * count)
            found = _best_and_worst(texts[own], rewards[own], finished[own], config.min_margin)
            if not isinstance(found, str):
                best, worst, margin = found
                found = _paired(rewriter, example, targets[i], best, worst, margin)
            outcomes.append(found)
        return outcomes

    return make


def _best_and_worst(
    texts: Sequence[str], rewards: torch.Tensor, finished: torch.Tensor, min_margin: float
) -> tuple[str, str, float] | str:
    """Cut rewrites are left out: their end, which training would add, is not theirs."""
    usable = [i for i in range(len(texts)) if finished[i] and texts[i].strip()]
    if len(usable) < 2:
        return "fewer than two sampled rewrites are finished"
    best = max(usable, key=lambda i: float(rewards[i]))
    worst = min(usable, key=lambda i: float(rewards[i]))
    margin = float(rewards[best] - rewards[worst])
    if margin < min_margin or texts[best] == texts[worst]:
        return f"the rewards of its samples differ by less than {min_margin:g}"
    return texts[best], texts[worst], round(margin, 5)


def _paired(
    rewriter: Rewriter,
    example: RewriteExample,
    target: torch.Tensor,
    chosen: str,
    rejected: str,
    margin: float | None = None,
) -> RewritePair | str:
    if not rejected.strip() or chosen.strip() == rejected.strip():
        return "both rewrites are the same, or one is empty"
    return RewritePair(
        query=example.query,
        response=example.response,
        target=rewriter.space.as_dict(target, digits=4),
        chosen=chosen,
        rejected=rejected,
        margin=margin,
    )


def _sampled(
    config: PreferenceTraining,
    rewriter: Rewriter,
    rows: Sequence[RewriteExample],
    targets: torch.Tensor,
    start: int,
    count: int,
) -> tuple[list[str], torch.Tensor]:
    """Texts of `count` samples of each record, adjacent, and which came to their end [B]."""
    sampling = SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_completion)
    prompts = [
        rewriter.prompt(example.query, example.response, target).ids
        for example, target in zip(rows, targets, strict=True)
    ]
    seed = step_seed(config.seed, -1)
    rollouts = rewriter.engine().generate(prompts, count, sampling, seed, first_group=start)
    return rewriter.decode(rollouts), rollouts.finished
