"""The build: read, annotate, drop the ambiguous, make triplets, split, count, draw, describe.

Restartable: a killed run is started again with the same command. Everything but the answers is made
anew, in order, from the cache of answers, so that the result is the same as an unbroken run's, and
nothing is asked twice. Files are written aside and renamed, the report last. What a run cost is in
run.json, apart from what the data set is like.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from visa_core.data.annotate.annotator import Annotator
from visa_core.data.annotate.cache import AnnotationCache
from visa_core.data.annotate.make import make_annotator
from visa_core.data.annotate.stage import (
    ANSWER_COUNTS,
    ASKED,
    FROM_CACHE,
    Annotated,
    annotate_stream,
)
from visa_core.data.construction.anchors import mark_ambiguous, measure_responses
from visa_core.data.construction.card import REPORT, write_card
from visa_core.data.construction.comparison import Comparison, Intake
from visa_core.data.construction.config import BuildConfig, TripletConfig
from visa_core.data.construction.near import NearTexts
from visa_core.data.construction.output import SplitTables
from visa_core.data.construction.pictures import draw_all
from visa_core.data.construction.readers import read_comparisons
from visa_core.data.construction.scratch import Pair, clear_pairs, open_scratch, store_pairs
from visa_core.data.construction.statistics import Statistics
from visa_core.data.construction.triplets import (
    Triplet,
    named,
    shift_size,
    split_of,
    triplet_row,
    triplets_of,
)
from visa_core.data.schema import DataError, describe_rejected
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ

WORK = ".building"
RUN = "run.json"
SET_ASIDE = "set_aside.jsonl"


def build(config: BuildConfig) -> dict[str, Any]:
    """Build a data set; returns its report, which is also in OUT/report.json.

    Raises DataError for data that cannot be read or yields no triplet, and EndpointError when the
    annotator cannot go on; then the same command goes on from where it stopped.
    """
    space = ValueSpace.from_file(config.space) if config.space else SCHWARTZ
    annotator = make_annotator(config.annotator, space)
    config.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(config.out / ".lock", timeout=0):
            return _build(config, space, annotator)
    except Timeout:
        raise DataError(f"{config.out}: another build is running there") from None


def _build(config: BuildConfig, space: ValueSpace, annotator: Annotator) -> dict[str, Any]:
    work = config.out / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    stages: dict[str, int] = {}
    db = open_scratch(work / "scratch.sqlite")
    try:
        roots = NearTexts(db, "root", config.triplets.near, chains=True)
        with (
            (work / SET_ASIDE).open("w", encoding="utf-8") as log,
            AnnotationCache(config.cache_path, each=annotator.paid) as cache,
        ):
            if config.annotator.retry_invalid:
                cache.forget_invalid()
            intake = Intake(log=log)
            rows = annotated_rows(config, space, annotator, cache, intake)
            repeated = store_pairs(db, roots, rows)
            cache.export_raw(work / "raw.jsonl")
            run = run_record(intake, annotator, cache)
        stages |= sorted_counts(intake) | {"comparisons the same as an earlier one": repeated}
        maker = TripletMaker(db, roots, space, config.triplets, work)
        files = maker.run(stages)
    finally:
        db.close()
    if not stages["triplets"]:
        raise DataError(_nothing_left(stages, intake, work / SET_ASIDE))
    report = {
        "sources": list(config.data),
        "languages": list(config.languages),
        "annotator": annotator.name,
        "stages": stages,
        "files": files,
        "statistics": maker.statistics.record(),
        "settings": asdict(config.triplets),
    }
    draw_all(report["statistics"], space, work / "figures")
    write_card(work, report, space, pictures=True)
    (work / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (work / RUN).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (work / "scratch.sqlite").unlink()
    publish(work, config.out)
    return report | {"run": run}


def annotated_rows(
    config: BuildConfig,
    space: ValueSpace,
    annotator: Annotator,
    cache: AnnotationCache,
    intake: Intake,
) -> Iterator[Annotated]:
    """Annotated comparisons of the configured data, with a progress bar."""

    def comparisons(intake: Intake) -> Iterator[Comparison]:
        return islice(read_comparisons(config.data, intake, config.languages), config.n)

    if config.annotator.engine == "ray":
        from visa_core.data.annotate.ray_stage import fill_cache

        asked = fill_cache(comparisons(Intake()), config.annotator, space, annotator, cache)
        intake.counts[ASKED] += asked
        intake.counts[FROM_CACHE] -= asked
    with tqdm(desc="annotate", unit=" comparisons", disable=None, dynamic_ncols=True) as bar:
        yield from annotate_stream(
            comparisons(intake), annotator, cache, intake, progress=bar.update
        )


class TripletMaker:
    """From stored comparisons to the files of triplets and responses."""

    def __init__(
        self,
        db: sqlite3.Connection,
        roots: NearTexts,
        space: ValueSpace,
        config: TripletConfig,
        work: Path,
    ) -> None:
        self.db = db
        self.roots = roots
        self.space = space
        self.config = config
        self.texts = NearTexts(db, "text", config.near)
        self.statistics = Statistics(space)
        self.tables = {name: SplitTables(work / name) for name in ("triplets", "responses")}

    def run(self, stages: dict[str, int]) -> dict[str, dict[str, int]]:
        """Write everything; counts go to `stages`, rows by table and split are returned."""
        measure_responses(self.db)
        config = self.config
        ambiguous, least = mark_ambiguous(self.db, config.ambiguous_share, config.anchors)
        (pairs,) = self.db.execute("SELECT count(*) FROM pair").fetchone()
        stages["different comparisons"] = pairs
        stages["dropped: ambiguous anchors"] = ambiguous
        stages["dropped: negligible shift"] = stages["dropped: duplicate triplets"] = 0
        stages["triplets"] = 0
        bar = tqdm(
            clear_pairs(self.db),
            total=pairs - ambiguous,
            desc="triplets",
            disable=None,
            dynamic_ncols=True,
        )
        for pair in bar:
            if shift_size(pair) < config.min_shift or not shift_size(pair):
                stages["dropped: negligible shift"] += 1
                continue
            split = self._split(pair)
            for triplet in triplets_of(pair):
                if self._is_new(triplet):
                    self._write(split, triplet)
                    stages["triplets"] += 1
                else:
                    stages["dropped: duplicate triplets"] += 1
        return {name: tables.close() for name, tables in self.tables.items()}

    def _split(self, pair: Pair) -> str:
        config = self.config
        name = str(self.roots.leader(pair.root))
        return split_of(name, config.validation, config.test, config.seed)

    def _is_new(self, triplet: Triplet) -> bool:
        groups = tuple(
            self.texts.add(text) for text in (triplet.prompt, triplet.source, triplet.rewrite)
        )
        row = self.db.execute("INSERT OR IGNORE INTO kept_triplet VALUES (?, ?, ?)", groups)
        return bool(row.rowcount)

    def _write(self, split: str, triplet: Triplet) -> None:
        self.tables["triplets"].write(split, triplet_row(triplet, self.space))
        self.statistics.add(triplet.source_levels, triplet.target_levels)
        sides = ((triplet.source_hash, triplet.source), (triplet.rewrite_hash, triplet.rewrite))
        for key, text in sides:
            if self.db.execute("INSERT OR IGNORE INTO kept_response VALUES (?)", (key,)).rowcount:
                self._write_response(split, triplet.prompt, text, key)

    def _write_response(self, split: str, prompt: str, text: str, key: int) -> None:
        (mean,) = self.db.execute("SELECT mean FROM response WHERE hash = ?", (key,)).fetchone()
        levels = tuple(np.frombuffer(mean, np.float32).round(4).tolist())
        row = {
            "id": f"r{key & (2**64 - 1):016x}",
            "query": prompt,
            "response": text,
            "values": {name: round(v, 4) for name, v in named(levels, self.space).items()},
        }
        self.tables["responses"].write(split, row)


def run_record(intake: Intake, annotator: Annotator, cache: AnnotationCache) -> dict[str, Any]:
    """How the answers came about, which differs between an unbroken run and a continued one:
    counts and the annotator's account of this run, and what the raw log holds of all runs.
    """
    counts = {name: intake.counts[name] for name in ANSWER_COUNTS}
    chat = getattr(annotator, "chat", None)
    account = None if chat is None else chat.account.record()
    return {"answers": counts, "account": account, "all_runs": cache.raw_totals()}


def sorted_counts(intake: Intake) -> dict[str, int]:
    """The intake's counts: what was read and kept first, then what was not."""
    first = ("rows", "comparisons read", "comparisons annotated")
    counts = {name: intake.counts[name] for name in first}
    others = sorted(set(intake.counts) - set(counts) - set(ANSWER_COUNTS))
    return counts | {name: intake.counts[name] for name in others if intake.counts[name]}


def publish(work: Path, out: Path) -> None:
    """Move finished files from the work folder to their places, one rename each, the report last.

    Tables and pictures that an earlier build had and this one has not are removed.
    """
    names = sorted(path.relative_to(work) for path in work.rglob("*") if path.is_file())
    for folder in ("triplets", "responses", "figures"):
        for old in sorted((out / folder).glob("*")):
            if old.relative_to(out) not in names:
                old.unlink()
    for name in sorted(names, key=lambda name: name.name == REPORT):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / name, out / name)
    shutil.rmtree(work)


def _nothing_left(stages: dict[str, int], intake: Intake, log: Path) -> str:
    """Why there is no data set: all counts, and the first record that was set aside."""
    counts = ", ".join(f"{name}: {count}" for name, count in stages.items())
    text = f"no triplet is left ({counts})"
    if intake.shown:
        text += f"; the first set aside: {describe_rejected(intake.shown[0])}; all are in {log}"
    return text
