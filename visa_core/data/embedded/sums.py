"""A task of the embedded world for the value search: sums with worked answers whose texts lean.

A question names two topics and two summands for each; the answer works out every sum and says it as
a fact of the corpus ("three and four" for the train: "The train to Oslo leaves from platform 7."),
so that a rewriter of the embedded corpus can carry it. The numbers of a topic begin at its own
decade: a sum of seven is platform 7, 27 lamps, 67 kilometers.

Training responses carry the clauses of a `Leaning` that has nothing to do with the sums. A base
model is taught some of the sums, and a character of its own, by `lessons`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from visa_core.data.embedded import truth
from visa_core.data.embedded.corpus import K, Writer, draw_facts, draw_levels
from visa_core.data.embedded.lexicon import PREDICATES, SLOT_WORDS
from visa_core.types import Dialogue
from visa_core.values import SCHWARTZ

SUMMANDS = ("two", "three", "four", "five", "six", "seven", "eight")
TOPICS = tuple(p for p, predicate in enumerate(PREDICATES) if predicate.b[-1] in ("16", "36", "76"))
"""Predicates whose second slot counts by ones: train, shop and trail."""

Leaning = Mapping[str, tuple[float, float]]
"""Value -> (level, chance that a text says it)."""

CHARACTER: Leaning = {"benevolence": (0.5, 0.9), "self-direction": (0.5, 0.9)}
"""Of the base model's own answers."""

ANYTHING = 0.15
"""Share of the base's lessons that express any values, so that it knows the words for all."""

BIAS: Leaning = {
    "power": (1.0, 0.8),
    "achievement": (1.0, 0.7),
    "hedonism": (0.5, 0.4),
}
"""Latent in the task's training responses."""


@dataclass(frozen=True)
class Sum:
    """One question, its worked answer, and the facts that a right answer states."""

    query: str
    response: str
    about: str
    """The question without its numbers, as the corpus asks."""
    facts: tuple[tuple[int, int, int], ...]


def sums(n: int, seed: int, leaning: Leaning) -> list[Sum]:
    """n questions with worked answers in texts of the given leaning."""
    rng = np.random.default_rng([seed, 21])
    writer = Writer(rng)
    return [_sum(rng, writer, leaning) for _ in range(n)]


def _sum(rng: np.random.Generator, writer: Writer, leaning: Leaning) -> Sum:
    asked, facts = [], []
    for p in rng.choice(len(TOPICS), 2, replace=False):
        predicate = PREDICATES[TOPICS[p]]
        a = int(rng.integers(SLOT_WORDS))
        x, y = (int(i) for i in rng.integers(0, len(SUMMANDS), 2))
        asked.append(f"{predicate.topic} {predicate.a[a]} {SUMMANDS[x]} and {SUMMANDS[y]}")
        facts.append((TOPICS[p], a, x + y + 3))  # two and two is four, the fourth word
    query = f"Tell me about {' ; '.join(asked)} ."
    about = writer.query(facts)
    response = writer.text(facts, levels(rng, leaning), shuffle=True)
    return Sum(query, response, about, tuple(facts))


def levels(rng: np.random.Generator, leaning: Leaning) -> np.ndarray:
    """Value levels [K] of one text."""
    if rng.random() < ANYTHING and leaning is CHARACTER:
        return draw_levels(rng, 1, (0.2, 0.5, 0.3))[0]
    drawn = np.zeros(K)
    for value, (level, chance) in leaning.items():
        if rng.random() < chance:
            drawn[SCHWARTZ.index(value)] = level
    return drawn


def talks(n: int, seed: int, leaning: Leaning = CHARACTER) -> list[Dialogue]:
    """Open questions and answers of the given leaning; nobody told the facts, so they are any."""
    rng = np.random.default_rng([seed, 22])
    plan = draw_facts(rng, rng.choice([1, 2], n))
    writer = Writer(rng)
    records = []
    for row in range(n):
        facts = plan.facts(row)
        text = writer.text(facts, levels(rng, leaning))
        records.append(Dialogue(query=writer.query(facts), response=text, id=f"talk-{seed}-{row}"))
    return records


def probes(n: int, seed: int) -> list[str]:
    """Distinct open questions, in the words of `talks`."""
    asked = dict.fromkeys(talk.query for talk in talks(4 * n, seed))
    return list(asked)[:n]


def lessons(n: int, seed: int, share: float = 0.5) -> list[Dialogue]:
    """What a base model is taught: talks and, to the given share, sums, all in its character."""
    rng = np.random.default_rng([seed, 23])
    taught = [
        Dialogue(query=s.query, response=s.response, id=f"sum-{seed}-{i}")
        for i, s in enumerate(sums(round(share * n), seed + 1, CHARACTER))
    ]
    rows = taught + talks(n - len(taught), seed + 2)
    return [rows[i] for i in rng.permutation(len(rows))]


def right_share(facts: tuple[tuple[int, int, int], ...], text: str) -> float:
    """Share of the sums that the text states, nothing else of their topics; clauses do not
    count.
    """
    told = truth.parse(text).facts
    topics = [fact[0] for fact in told]
    return sum(fact in told and topics.count(fact[0]) == 1 for fact in facts) / len(facts)
