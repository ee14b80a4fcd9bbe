"""What a text of the embedded corpus says, known by construction: facts, value clauses, and
whatever is neither.

A sentence is a list of parts joined by "; ", each a fact or a value clause, and ends with ".". A
part that is neither counts as
junk. So every learned score can be held against the truth, and reward hacking shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from visa_core.data.embedded.further import FOURTEEN, FURTHER_STEMS
from visa_core.data.embedded.lexicon import OPENERS, PREDICATES, STEMS
from visa_core.values import SCHWARTZ, cosine

Fact = tuple[int, int, int]
"""(predicate, word of slot a, word of slot b)."""
Clause = tuple[int, float]
"""(value index among the fourteen, level on the Likert grid)."""


@dataclass(frozen=True)
class Parsed:
    """The content of one text. `sentences` holds the facts of each sentence, and whether it has
    junk.
    """

    facts: tuple[Fact, ...]
    clauses: tuple[Clause, ...]
    repeated: int
    junk: int
    sentences: tuple[tuple[tuple[Fact, ...], bool], ...]


@lru_cache(maxsize=1)
def _fact_table() -> dict[str, Fact]:
    return {
        form.format(a=a, b=b).lower(): (p, i, j)
        for p, predicate in enumerate(PREDICATES)
        for form in predicate.forms
        for i, a in enumerate(predicate.a)
        for j, b in enumerate(predicate.b)
    }


@lru_cache(maxsize=1)
def _clause_table() -> dict[str, Clause]:
    return {
        f"{opener} {stem}": (FOURTEEN.index(value), level)
        for value, stems in (STEMS | FURTHER_STEMS).items()
        for stem in stems
        for level, openers in OPENERS.items()
        for opener in openers
    }


def parse(text: str) -> Parsed:
    """Read one text. Never fails: what cannot be read is junk."""
    facts, clauses, sentences, seen = [], [], [], set()
    junk = repeated = 0
    chunks = text.lower().split(".")
    for i, chunk in enumerate(chunks):
        if not chunk.strip() and i == len(chunks) - 1:
            continue
        own: list[Fact] = []
        broken = i == len(chunks) - 1
        for part in chunk.split(";"):
            part = " ".join(part.split())
            fact, clause = _fact_table().get(part), _clause_table().get(part)
            key = fact or clause
            repeated += key is not None and key in seen
            seen.add(key)
            if fact is not None:
                own.append(fact)
            elif clause is not None:
                clauses.append(clause)
            else:
                broken = True
        junk += broken
        facts.extend(own)
        sentences.append((tuple(own), broken))
    return Parsed(tuple(facts), tuple(clauses), repeated, junk, tuple(sentences))


def values(text: str | Parsed, size: int = SCHWARTZ.size) -> torch.Tensor:
    """Value vector a text expresses, [K] float32: per value the mean over its distinct levels, 0
    when absent. size: 10 for Schwartz's values, 14 with the further ones.
    """
    parsed = parse(text) if isinstance(text, str) else text
    vector = torch.zeros(size)
    for k in {k for k, _ in parsed.clauses if k < size}:
        levels = {level for other, level in parsed.clauses if other == k}
        vector[k] = sum(levels) / len(levels)
    return vector


def entailed_share(premise: Parsed, hypothesis: Parsed) -> float:
    """Share of the hypothesis' sentences that state facts, all of them facts of the premise;
    fact-free text gives 0.
    """
    known = set(premise.facts)
    held = [bool(own) and not broken and set(own) <= known for own, broken in hypothesis.sentences]
    return sum(held) / len(held) if held else 0.0


def score(source: str, rewrite: str, target: torch.Tensor) -> dict[str, float]:
    """Truth about one rewrite against its source and target [K].

    fwd, bwd, consistency  as the fact analyzer defines them, from the facts themselves
    l2, cos                of the value vector the clauses express
    facts_kept             share of the source's facts that the rewrite states
    facts_added            facts of the rewrite that the source does not state
    repeated               facts and clauses said again
    unparsable             share of sentences with text that is neither fact nor clause
    length                 words
    """
    before, after = parse(source), parse(rewrite)
    known, told = set(before.facts), set(after.facts)
    fwd, bwd = entailed_share(after, before), entailed_share(before, after)
    vector = values(after, len(target))
    return {
        "fwd": fwd,
        "bwd": bwd,
        "consistency": (2 * fwd + bwd) / 3,
        "l2": float((vector - target).norm()),
        "cos": float(cosine(vector, target)),
        "facts_kept": len(known & told) / max(len(known), 1),
        "facts_added": float(len(told - known)),
        "repeated": float(after.repeated),
        "unparsable": after.junk / max(len(after.sentences), 1),
        "length": float(len(rewrite.split())),
    }


def score_all(
    sources: Sequence[str], rewrites: Sequence[str], targets: torch.Tensor
) -> list[dict[str, float]]:
    """`score` over a batch; targets [B, K]."""
    return [score(s, r, t) for s, r, t in zip(sources, rewrites, targets, strict=True)]
