"""Training data of the scorers, and preferences: each text labelled with what it truly says.

A policy writes texts that no person would, and a scorer that has only seen clean ones can be
fooled by them. So a documented
share is damaged: words lost, doubled, swapped or strange, parts said twice, values in conflict.
The label is what is left.
"""

from __future__ import annotations

import numpy as np

from visa_core.data.embedded import truth
from visa_core.data.embedded.corpus import (
    LEVELS,
    MAX_FACTS,
    Writer,
    alter_slot,
    as_dict,
    draw_facts,
    draw_levels,
)
from visa_core.data.embedded.lexicon import PREDICATES, SLOT_WORDS
from visa_core.types import Dialogue, NLIPair, PreferencePair
from visa_core.values import SCHWARTZ

DAMAGED = 0.35
"""Share of damaged texts among the scorers' training texts."""

Fact = tuple[int, int, int]


def damage(rng: np.random.Generator, text: str) -> str:
    """The text with one to three small defects of the kinds that sampled text has."""
    words = text.split()
    for _ in range(int(rng.integers(1, 4))):
        i, j = (int(k) for k in rng.integers(0, len(words), 2))
        kind = int(rng.integers(0, 5))
        if kind == 0 and len(words) > 3:
            del words[i]
        elif kind == 1:
            words.insert(i, words[i])
        elif kind == 2:
            words[i], words[j] = words[j], words[i]
        elif kind == 3:
            words[i] = words[j]
        else:
            words = words[: max(3, len(words) - int(rng.integers(1, 5)))]
    return " ".join(words)


def dialogues(n: int = 6000, seed: int = 0) -> list[Dialogue]:
    """Queries and responses with their true value vectors, for the detector."""
    rng = np.random.default_rng([seed, 3])
    plan = draw_facts(rng, rng.choice([1, 2, 3], n, p=[0.1, 0.5, 0.4]))
    levels = draw_levels(rng, n, (0.1, 0.3, 0.4, 0.2))
    writer = Writer(rng)
    records = []
    for row in range(n):
        facts = plan.facts(row)
        text = writer.text(facts, levels[row], shuffle=True)
        if rng.random() < DAMAGED:
            text = _damaged_dialogue(rng, writer, text)
        records.append(
            Dialogue(
                query=writer.query(facts),
                response=text,
                values=as_dict(truth.values(text).numpy()),
                id=f"dialogue-{seed}-{row}",
            )
        )
    return records


def _damaged_dialogue(rng: np.random.Generator, writer: Writer, text: str) -> str:
    kind = int(rng.integers(0, 4))
    if kind == 0:
        extra = writer.clause(int(rng.integers(SCHWARTZ.size)), float(rng.choice(LEVELS)))
        return f"{text[:-1]}; {extra}."
    if kind == 1:
        parts = text[:-1].replace(". ", "; ").split("; ")
        again = parts[int(rng.integers(len(parts)))]
        return f"{text[:-1]}; {again}."
    return damage(rng, text)


def nli_pairs(n: int = 12000, seed: int = 0) -> list[NLIPair]:
    """Premises and hypotheses with entailed, neutral and contradicted facts, about a third each.

    Value clauses are opinions and do not decide the label. Text that states no fact, or is broken,
    is neutral: it claims nothing
    that could be checked. A hypothesis of several sentences takes the worst label of its facts.
    """
    rng = np.random.default_rng([seed, 4])
    plan = draw_facts(rng, rng.choice([1, 2, 3], n, p=[0.1, 0.45, 0.45]))
    premise_levels = draw_levels(rng, n, (0.25, 0.35, 0.3, 0.1))
    levels = draw_levels(rng, n, (0.4, 0.5, 0.1))
    wanted = rng.choice(3, n)
    writer = Writer(rng)
    records = []
    for row in range(n):
        facts = plan.facts(row)
        premise = writer.text(facts, premise_levels[row], shuffle=True)
        hypothesis = writer.text(
            _hypothesis_facts(rng, facts, int(wanted[row])), levels[row], shuffle=True
        )
        if rng.random() < 0.15:
            hypothesis = damage(rng, hypothesis)
        elif rng.random() < 0.06:
            clause = writer.clause(int(rng.integers(SCHWARTZ.size)), float(rng.choice(LEVELS)))
            hypothesis = f"{clause}."
        if rng.random() < 0.1:
            premise = damage(rng, premise)
        label = nli_label(premise, hypothesis)
        records.append(
            NLIPair(premise=premise, hypothesis=hypothesis, label=label, id=f"nli-{seed}-{row}")
        )
    return records


def _hypothesis_facts(rng: np.random.Generator, facts: list[Fact], wanted: int) -> list[Fact]:
    """Mostly one fact, sometimes two: of the premise (0), of another topic (1), or with a slot
    altered (2).
    """
    order = [facts[i] for i in rng.permutation(len(facts))]
    chosen = order[: 2 if rng.random() < 0.2 else 1]
    if wanted == 1:
        used = {p for p, _, _ in facts}
        free = [p for p in range(len(PREDICATES)) if p not in used]
        slots = rng.integers(0, SLOT_WORDS, 2)
        chosen[0] = (int(rng.choice(free)), int(slots[0]), int(slots[1]))
    elif wanted == 2:
        chosen[0] = alter_slot(rng, chosen[0])
    return chosen


def nli_label(premise: str, hypothesis: str) -> str:
    """The true label of a pair of embedded texts."""
    before, after = truth.parse(premise), truth.parse(hypothesis)
    known, told = set(before.facts), set(after.facts)
    if any(
        fact[0] == other[0] and fact != other and fact not in known
        for fact in told
        for other in known
    ):
        return "contradiction"
    fact_free = any(broken or not own for own, broken in after.sentences) or not after.sentences
    return "neutral" if fact_free or not told <= known else "entailment"


def preferences(n: int = 2000, seed: int = 0) -> list[PreferencePair]:
    """Two responses with the same facts and other values; a person chose one and says why."""
    rng = np.random.default_rng([seed, 5])
    plan = draw_facts(rng, np.full(n, MAX_FACTS - 1))
    levels = draw_levels(rng, n, (0.0, 0.6, 0.4))
    other = draw_levels(rng, n, (0.2, 0.5, 0.3))
    other[(levels == other).all(1)] = 0.0
    writer = Writer(rng)
    records = []
    for row in range(n):
        facts = plan.facts(row)
        chosen, rejected = (
            writer.text(facts, vector, shuffle=True) for vector in (levels[row], other[row])
        )
        wish = writer.instruction(np.clip(levels[row] - other[row], -2, 2))
        records.append(
            PreferencePair(
                prompt=writer.query(facts),
                chosen=chosen,
                rejected=rejected,
                explanation=f"To suit me the other answer would have to change: {wish}.",
                id=f"preference-{seed}-{row}",
            )
        )
    return records
