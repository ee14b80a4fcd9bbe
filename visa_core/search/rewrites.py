"""Rewrites of a task's training responses toward value vectors, each made once and kept in
SQLite.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from visa_core.evaluation.journal import content_key
from visa_core.models.prompt import target_text
from visa_core.models.rewriter import Rewriter
from visa_core.rollout.engine import Engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Example:
    """A question of the task and its training response."""

    query: str
    response: str
    about: str = ""
    """The question as the rewriter reads it, where that is not the query itself."""


@dataclass(frozen=True)
class Rewrite:
    """A rewrite, and whether it came to its end within the rewriter's limit."""

    text: str
    finished: bool


class RewriteCache:
    """Rewrites by content key in one SQLite file. Raises CheckpointError where it cannot be read or
    written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(self.path, timeout=60)
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS rewrites "
                "(key TEXT PRIMARY KEY, text TEXT NOT NULL, finished INTEGER NOT NULL)"
            )
            self.db.commit()
        except (OSError, sqlite3.Error) as error:
            raise self._failed("open", error) from error

    def get(self, keys: Sequence[str]) -> dict[str, Rewrite]:
        """What is there, by key."""
        found: dict[str, Rewrite] = {}
        try:
            for start in range(0, len(keys), 500):
                part = list(keys[start : start + 500])
                marks = ",".join("?" * len(part))
                query = f"SELECT key, text, finished FROM rewrites WHERE key IN ({marks})"
                for key, text, finished in self.db.execute(query, part):
                    found[key] = Rewrite(text, bool(finished))
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        return found

    def put(self, rewrites: dict[str, Rewrite]) -> None:
        """Keep rewrites; on disk when this returns."""
        rows = [(key, r.text, int(r.finished)) for key, r in rewrites.items()]
        try:
            with self.db:
                self.db.executemany("INSERT OR REPLACE INTO rewrites VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self._failed("write", error) from error

    def __len__(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM rewrites").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self.db.close()

    def _failed(self, what: str, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"cannot {what} the cache of rewrites {self.path}: {error}. Choose a writable --out, "
            "or delete the file if it is damaged: rewrites are then made anew"
        )


class CachedRewriter:
    """A rewriter that is asked only for what its cache lacks."""

    def __init__(
        self,
        rewriter: Rewriter,
        identity: str,
        cache: RewriteCache,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 128,
        engine: Engine | None = None,
    ) -> None:
        """identity: what tells this rewriter's weights from others', see `folder_identity`."""
        self.rewriter = rewriter
        self.identity = identity
        self.cache = cache
        self.temperature = temperature
        self.seed = seed
        self.batch_size = batch_size
        self.engine = engine or rewriter.engine()

    def rewrite(self, examples: Sequence[Example], targets_KD: np.ndarray) -> list[list[Rewrite]]:
        """Rewrites of all examples toward each target, [K][examples].

        Targets that read alike to the rewriter (it sees half steps) share their rewrites.
        """
        targets = torch.tensor(targets_KD, dtype=torch.float32)
        keys = [[self._key(example, target) for example in examples] for target in targets]
        have = self.cache.get(list(dict.fromkeys(key for own in keys for key in own)))
        missing = {
            key: (example, target)
            for own, target in zip(keys, targets, strict=True)
            for key, example in zip(own, examples, strict=True)
            if key not in have
        }
        order = sorted(missing, key=lambda key: len(missing[key][0].response))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            made = dict(zip(part, self._make([missing[key] for key in part]), strict=True))
            self.cache.put(made)
            have |= made
        return [[have[key] for key in own] for own in keys]

    def fitting(self, examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
        """(examples that fit the rewriter's prompt under the longest target, why others do not)."""
        longest = torch.full((self.rewriter.space.size,), -0.5)
        kept, problems = [], []
        for example in examples:
            try:
                self.rewriter.prompt(example.about or example.query, example.response, longest)
                kept.append(example)
            except ValueError as error:
                problems.append(f"{example.query[:60]!r}: {error}")
        return kept, problems

    def _make(self, wanted: list[tuple[Example, torch.Tensor]]) -> list[Rewrite]:
        prompts = [
            self.rewriter.prompt(e.about or e.query, e.response, target).ids for e, target in wanted
        ]
        sampling = SamplingConfig(
            temperature=self.temperature, max_new_tokens=self.rewriter.max_completion
        )
        rollouts = self.engine.generate(prompts, 1, sampling, self.seed)
        texts = self.rewriter.decode(rollouts)
        return [Rewrite(t, f) for t, f in zip(texts, rollouts.finished.tolist(), strict=True)]

    def _key(self, example: Example, target: torch.Tensor) -> str:
        return content_key(
            self.identity,
            example.about or example.query,
            example.response,
            target_text(self.rewriter.space, target),
            self.temperature,
            self.seed if self.temperature else 0,
            self.rewriter.max_completion,
        )


def folder_identity(folder: Path) -> str:
    """Hash of a rewriter folder's weights, tokenizer and settings."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".txt") and path.name != "run.json":
            digest.update(json.dumps([path.name, path.stat().st_size]).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
