"""One row a rewrite, kept in a file as it comes: tables are made of rows and never of models.

A row holds the texts, the target, what detector and fact analyzer said, and, for embedded texts,
what is true of it; so figures can be computed anew, with other thresholds too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from tqdm import tqdm

from visa_core.endpoints import EndpointError
from visa_core.evaluation.baselines.prompting import PartlyAnswered
from visa_core.evaluation.edits import edit_share
from visa_core.evaluation.evaluate import Truth
from visa_core.evaluation.journal import Journal, content_key
from visa_core.rewards import FactScorer, ValueScorer, measure
from visa_core.training.checkpoint import CheckpointError
from visa_core.types import RewriteExample

COPY = "copy"
"""The identity baseline: the rewrite is the source."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rewrite of one prompt by one method. target, values: K numbers; truth is None where
    nothing is known by construction.
    """

    model: str
    """What was trained or asked; methods are compared within a model."""
    method: str
    system: str
    """Whose scorers and prompts: one a seed."""
    identity: str
    """Which weights and settings made the rewrite, so that rows of older ones are told apart."""
    prompt: str
    """The prompt's hash: equal for equal query, source and target, over methods and systems."""
    query: str
    source: str
    target: list[float]
    rewrite: str
    finished: bool
    values: list[float]
    fwd: float
    bwd: float
    edit: float
    """Share of words changed."""
    parameters: int = 0
    """Of the rewriting model; 0 where it is not known."""
    truth: dict[str, float] | None = None


class Rewrites(Protocol):
    """Rewrites responses: a Rewriter, or a PromptedRewriter."""

    def sample(
        self,
        queries: Sequence[str],
        responses: Sequence[str],
        targets: torch.Tensor,
        *,
        temperature: float,
        seed: int,
        batch_size: int,
    ) -> tuple[list[str], torch.Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method of a model on a system. `load` gives what rewrites, None for the copy."""

    model: str
    method: str
    system: str
    identity: str
    load: Callable[[], Rewrites] | None = None
    parameters: int = 0
    paid: bool = False
    """Rewrites cost money or time elsewhere: what is there is not asked for again. Otherwise a
    batch that a kill left half done is sampled anew as a whole, so that its rows come out the same.
    """


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What all methods of a system rewrite, and what scores them. targets [N, K]."""

    examples: list[RewriteExample]
    targets: torch.Tensor
    detector: ValueScorer
    fact_analyzer: FactScorer
    truth: Truth | None = None
    keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rounded = [[round(x * 2) / 2 for x in row] for row in self.targets.tolist()]
        keys = [
            content_key(e.query, e.response, e.instruction, levels)
            for e, levels in zip(self.examples, rounded, strict=True)
        ]
        if len(set(keys)) != len(keys):
            keys = [content_key(key, keys[:i].count(key)) for i, key in enumerate(keys)]
        object.__setattr__(self, "keys", keys)


def collect(
    entry: Entry,
    prompts: Prompts,
    journal: Journal,
    *,
    temperature: float,
    seed: int,
    batch_size: int,
) -> int:
    """Sample and score what the journal lacks of an entry, a batch at a time, each on disk before
    the next; how many rows that were.
    """
    keys = [content_key(entry.model, entry.method, entry.system, key) for key in prompts.keys]
    todo = [i for i, key in enumerate(keys) if not _kept(journal, key, entry.identity)]
    if not todo:
        return 0
    rewrites = entry.load() if entry.load is not None else None
    label = f"{entry.model}/{entry.method} on {entry.system}"
    bar = tqdm(total=len(keys), initial=len(keys) - len(todo), desc=label, disable=None)
    for start in range(0, len(keys), batch_size):
        batch = list(range(start, min(start + batch_size, len(keys))))
        wanted = set(batch) & set(todo)
        if not wanted:
            continue
        if entry.paid:
            batch = sorted(wanted)
        batch, texts, finished, stopped = _texts(
            rewrites, prompts, batch, temperature, seed + start, batch_size
        )
        for i, row in zip(batch, _rows(entry, prompts, batch, texts, finished), strict=True):
            if i in wanted:
                journal.put(keys[i], asdict(row))
        bar.update(len(wanted))
        if stopped:
            raise EndpointError(f"{stopped}. What came is kept: run again to ask for the rest.")
    bar.close()
    return len(todo)


def _kept(journal: Journal, key: str, identity: str) -> bool:
    return key in journal and journal[key]["identity"] == identity


def _texts(
    rewrites: Rewrites | None,
    prompts: Prompts,
    batch: list[int],
    temperature: float,
    seed: int,
    batch_size: int,
) -> tuple[list[int], list[str], torch.Tensor, str]:
    """(those of the batch that were rewritten, their texts, which are whole, why the others have
    none).
    """
    examples = [prompts.examples[i] for i in batch]
    if rewrites is None:
        return batch, [e.response for e in examples], torch.ones(len(batch)).bool(), ""
    try:
        texts, whole = rewrites.sample(
            [e.query for e in examples],
            [e.response for e in examples],
            prompts.targets[batch],
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )
    except PartlyAnswered as error:
        answered = [k for k, text in enumerate(error.texts) if text is not None]
        texts = [error.texts[k] or "" for k in answered]
        return [batch[k] for k in answered], texts, error.whole[answered], str(error)
    return batch, texts, whole, ""


def _rows(
    entry: Entry,
    prompts: Prompts,
    batch: Sequence[int],
    texts: Sequence[str],
    finished: torch.Tensor,
) -> list[Row]:
    if not batch:
        return []
    examples = [prompts.examples[i] for i in batch]
    targets = prompts.targets[list(batch)]
    sources = [e.response for e in examples]
    measured = measure(
        prompts.detector,
        prompts.fact_analyzer,
        [e.query for e in examples],
        sources,
        texts,
        targets,
    )
    facts = measured.consistency
    rows = []
    for i, (index, example, text) in enumerate(zip(batch, examples, texts, strict=True)):
        truth = prompts.truth
        known = None if truth is None else dict(truth(example.response, text, targets[i]))
        rows.append(
            Row(
                model=entry.model,
                method=entry.method,
                system=entry.system,
                identity=entry.identity,
                prompt=prompts.keys[index],
                query=example.query,
                source=example.response,
                target=_rounded(targets[i]),
                rewrite=text,
                finished=bool(finished[i]),
                values=_rounded(measured.values[i]),
                fwd=round(float(facts.fwd[i]), 6),
                bwd=round(float(facts.bwd[i]), 6),
                edit=round(edit_share(example.response, text), 6),
                parameters=entry.parameters,
                truth=known,
            )
        )
    return rows


def _rounded(vector: torch.Tensor) -> list[float]:
    return [round(x, 6) for x in vector.tolist()]


def read_rows(records: Iterable[dict[str, Any]], path: object) -> list[Row]:
    """Rows of a journal's records, in the order of the file. Raises CheckpointError for one that
    is no row.
    """
    rows = []
    for record in records:
        try:
            rows.append(Row(**{name: value for name, value in record.items() if name != "key"}))
        except TypeError as error:
            raise CheckpointError(
                f"{path}: a record is no row of rewrites ({error}); choose another --out"
            ) from error
    return rows
