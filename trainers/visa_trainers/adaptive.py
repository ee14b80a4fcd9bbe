"""Adaptive value search: searches, final trainings beside plain fine-tuning, and the report."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visa_core.config.search import AdaptiveConfig, UpdateConfig, with_scenario
from visa_core.data.embedded import sums
from visa_core.evaluation.pairwise.models import public
from visa_core.models.detector import Detector
from visa_core.models.encoder import ModelFolderError
from visa_core.models.rewriter import Rewriter
from visa_core.pipeline import read_system
from visa_core.search import tasks
from visa_core.search.adapters import weights_digest
from visa_core.search.candidates import Base
from visa_core.search.inner import InnerLoop, cut_share
from visa_core.search.loop import RULE, History, search
from visa_core.search.report import write_report
from visa_core.search.reward import ExactAnswers, ProfileDrift, Reward
from visa_core.search.rewrites import CachedRewriter, Example, RewriteCache, folder_identity
from visa_core.training.checkpoint import write_file
from visa_core.training.stage import report_set_aside
from visa_core.training.supervised import pick_device
from visa_trainers import embedded_base, quickstart

log = logging.getLogger("visa_trainers.adaptive")

DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}
ANSWER_TOKENS = 48
"""Longest answer of the embedded base."""


@dataclass(frozen=True)
class Job:
    """What a search works with. `reward` guides it; `table` measures the end on other questions."""

    base: Base
    rewriter: CachedRewriter
    examples: list[Example]
    reward: Reward
    table: Reward
    profile: ProfileDrift
    """What reads the base's own profile, one of the targets that need no search."""
    names: list[str]
    """Values of the space, in order."""
    fingerprint: dict[str, Any]
    """What rewards depend on besides the settings."""


def run(config: AdaptiveConfig) -> Path:
    """Search, train the end models beside plain fine-tuning, write the report; returns the path of
    search.json. A run that was stopped goes on when it is started again with the same settings.
    """
    config, start = with_scenario(config), time.perf_counter()
    job = embedded_job(config) if config.embedded else real_job(config)
    prepared = time.perf_counter()
    before = weights_digest(job.base.model)
    loops, histories, ends = [], [], []
    for number in range(config.seeds):
        seed = config.search.seed + number
        loops.append(inner_loop(job, config, seed))
        histories.append(one_search(job, config, loops[-1], seed))
        ends.append(end_models(job, config, loops[-1], histories[-1], seed))
    record = {
        "rule": RULE,
        "what": described(config),
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "values": job.names,
        "arms": [end["arms"] for end in ends],
        "targets": [dict(zip(job.names, h.answer.tolist(), strict=True)) for h in histories],
        "searches": [history.iterations for history in histories],
        "base_unchanged": weights_digest(job.base.model) == before,
        "seconds": {
            "prepared": round(prepared - start, 1),
            "searched": round(time.perf_counter() - prepared, 1),
        },
    }
    best = max(range(len(ends)), key=lambda i: ends[i]["arms"]["visa"]["reward"])
    lines = [json.dumps(row, ensure_ascii=False) for row in ends[best]["rewritten"]]
    write_file(config.out / "rewritten.jsonl", "".join(f"{line}\n" for line in lines))
    return write_report(config.out, record)


def inner_loop(job: Job, config: AdaptiveConfig, seed: int) -> InnerLoop:
    """The inner loop of one seed; reads the base's own values for it."""
    reward = replace(job.reward, drift=job.reward.drift.with_seed(seed))
    loop = InnerLoop(job.base, job.rewriter, job.examples, config.update, reward, seed)
    loop.reward.drift.set_reference(loop.untrained())
    return loop


def one_search(job: Job, config: AdaptiveConfig, loop: InnerLoop, seed: int) -> History:
    """The outer loop of one seed, saved in OUT/states."""
    return search(
        replace(config.search, seed=seed),
        len(job.names),
        loop,
        config.out / "states" / f"search-{seed}.json",
        fingerprint=job.fingerprint,
        label=f"search {seed}",
    )


def end_models(
    job: Job, config: AdaptiveConfig, loop: InnerLoop, history: History, seed: int
) -> dict[str, Any]:
    """Base, plain fine-tuning, and fine-tuning on rewrites toward the search's answer, toward
    neutral and toward the base's own profile, trained at once and measured on the table's
    questions.
    """
    path = config.out / "states" / f"end-{seed}.json"
    target = history.answer.tolist()
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["target"] == target:
            return saved
    profile = job.profile.with_seed(seed).set_reference(loop.untrained()).numpy()
    targets = np.stack([history.answer, 0 * history.answer, profile])
    rewrites = job.rewriter.rewrite(job.examples, targets)
    texts = [[e.response for e in job.examples], *([r.text for r in own] for own in rewrites)]
    final = replace(loop, update=final_update(config), reward=with_seed(job.table, seed))
    base = final.untrained()
    final.reward.drift.set_reference(base)
    models, losses = final.updated(texts)
    records = [*final.reward(base), *final.reward(models)]
    arms = dict(zip(("base", "sft", "visa", "neutral", "profile"), records, strict=True))
    for arm, loss in zip(("sft", "visa", "neutral", "profile"), losses, strict=True):
        arms[arm]["loss"] = loss
    for arm, own in zip(("visa", "neutral", "profile"), rewrites, strict=True):
        arms[arm]["cut"] = cut_share(own)
    rewritten = [
        {"query": e.query, "response": r.text, "source": e.response}
        for e, r in zip(job.examples, rewrites[0], strict=True)
    ]
    end = {"target": target, "arms": arms, "rewritten": rewritten}
    write_file(path, json.dumps(end, ensure_ascii=False) + "\n")
    return end


def with_seed(reward: Reward, seed: int) -> Reward:
    """The reward with its own probe answers of a seed."""
    return replace(reward, drift=reward.drift.with_seed(seed + 1000))


def final_update(config: AdaptiveConfig) -> UpdateConfig:
    """The final trainings' settings."""
    return replace(config.update, steps=config.final_steps or config.update.steps)


def embedded_job(config: AdaptiveConfig) -> Job:
    """The scenario without files; trains what it is not given."""
    system = config.system or config.out / "system"
    if config.system is None:
        quickstart.run(quickstart.QuickstartConfig(out=system, smoke=config.smoke))
    recipe = embedded_base.SMOKE if config.smoke else embedded_base.FULL
    folder = embedded_base.train_base(config.out / "base", recipe)
    base, rewriter, detector = opened(config, folder, system)
    task = sums.sums(config.train_rows, 0, sums.BIAS)
    examples = [Example(s.query, s.response, s.about) for s in task]

    def reward(seed: int, rows: int, probes: int) -> tuple[Reward, ProfileDrift]:
        asked = sums.sums(rows, seed, sums.BIAS)
        able = ExactAnswers(
            [s.query for s in asked],
            [s.facts for s in asked],
            lambda facts, text: sums.right_share(facts, text) == 1,
            max_tokens=ANSWER_TOKENS,
            batch_size=128,
        )
        read = profile_drift(config, detector, sums.probes(probes, seed + 1), ANSWER_TOKENS)
        return Reward(able, read, config.drift_weight), read

    rows, probes = config.capability_rows, config.probe_rows
    searched, profile = reward(900, rows, probes)
    return Job(
        base,
        rewriter,
        examples,
        searched,
        reward(950, 2 * rows, 2 * probes)[0],
        profile,
        list(rewriter.rewriter.space.names),
        fingerprint(config, base, rewriter),
    )


def real_job(config: AdaptiveConfig) -> Job:
    """Files and folders as the settings name them; files are read first, so that a bad one is told
    at once.
    """
    assert config.base is not None and config.system is not None
    examples = tasks.read_task(config)
    searched, final = tasks.capabilities(config)
    probes, others = tasks.probe_questions(config)
    judged = tasks.judged_drift(config)
    base, rewriter, detector = opened(config, config.base, config.system)
    profile, other = (
        profile_drift(config, detector, asked, config.max_tokens) for asked in (probes, others)
    )
    kept, problems = rewriter.fitting(examples)
    report_set_aside(problems, len(examples))
    return Job(
        base,
        rewriter,
        fitting_base(base, kept),
        Reward(searched, judged or profile, config.drift_weight),
        Reward(final, judged or other, config.drift_weight),
        profile,
        list(rewriter.rewriter.space.names),
        fingerprint(config, base, rewriter),
    )


def profile_drift(
    config: AdaptiveConfig, detector: Detector, probes: list[str], max_tokens: int
) -> ProfileDrift:
    """Drift of the detector's profile over these questions, by the settings."""
    return ProfileDrift(
        detector,
        probes,
        max_tokens=max_tokens,
        temperature=config.temperature,
        samples=config.probe_samples,
        batch_size=128,
    )


def opened(
    config: AdaptiveConfig, base: Path, system: Path
) -> tuple[Base, CachedRewriter, Detector]:
    """Base, cached rewriter and detector on their device. Raises ModelFolderError, CheckpointError
    for a cache that cannot be written, and ValueError for parts of two value spaces.
    """
    device = pick_device(config.device)
    parts = read_system(system)
    cache = RewriteCache(config.out / "rewrites.sqlite")
    model = Rewriter.from_pretrained(base, dtype=DTYPES[config.dtype])
    model.model.to(device)
    rewriter = Rewriter.from_pretrained(parts["rewriter"])
    rewriter.model.to(device).eval()
    detector = Detector.from_pretrained(parts["detector"]).to(device)
    if detector.space != rewriter.space:
        raise ModelFolderError(
            f"{system}: detector and rewriter have other value spaces; take both of one training"
        )
    cached = CachedRewriter(
        rewriter,
        folder_identity(parts["rewriter"]),
        cache,
        temperature=config.rewrite_temperature,
        seed=config.search.seed,
        engine=rewriter.engine(config.engine),
    )
    return Base(model), cached, detector


def fitting_base(base: Base, examples: list[Example]) -> list[Example]:
    """Examples whose question and response the base can read, with as much room again for a longer
    rewrite; the others are counted in a warning. Raises ValueError when none is left.
    """
    kept, problems = [], []
    for example in examples:
        size = len(base.prompt(example.query)) + 2 * len(base.completion(example.response))
        if base.limit is None or size <= base.limit:
            kept.append(example)
        else:
            problems.append(f"{example.query[:60]!r}: beyond the base's {base.limit} tokens")
    report_set_aside(problems, len(examples))
    return kept


def fingerprint(config: AdaptiveConfig, base: Base, rewriter: CachedRewriter) -> dict[str, Any]:
    """What a saved search depends on besides its own settings."""
    record = asdict(config) | {"judge": public(config.judge)}
    for name in ("out", "search", "seeds", "final_steps", "device", "engine", "system", "base"):
        record.pop(name)
    return record | {"base": weights_digest(base.model), "rewriter": rewriter.identity}


def described(config: AdaptiveConfig) -> dict[str, str]:
    """What the figures are, in words, for the report."""
    if config.embedded:
        able = "share of questions with both sums right, greedy, on questions of its own"
    else:
        able = f"{config.capability}, the half that the search has not seen"
    drift = (
        "mean absolute change of the detector's profile over probe questions, against the base's; "
        "a fast proxy for the judged protocol of `visa drift`"
    )
    if config.drift == "judged":
        drift = (
            "mean absolute change of win rates against default answers, judged by "
            f"{config.judge.model}; the table has other answers to the search's questions"
        )
    return {
        "capability": able,
        "drift": drift,
        "training": f"LoRA of rank {config.update.rank}, {final_update(config).steps} steps, the "
        "same for plain fine-tuning and for rewrites",
    }
