"""Generator of the embedded corpus: seeded, drawn in arrays, no files needed.

A text is planned as arrays (which facts, which value levels) and then put into words, so facts and
values are known by
construction. Every function takes n and seed and returns n records.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from visa_core.data.embedded.lexicon import (
    ADJECTIVES,
    AXIS_PHRASES,
    OPENERS,
    PREDICATES,
    QUERIES,
    SHIFT_PHRASES,
    SLOT_WORDS,
    STEMS,
)
from visa_core.types import RewriteExample
from visa_core.values import SCHWARTZ

K = SCHWARTZ.size
MAX_FACTS = 3
LEVELS = np.array([-1.0, -0.5, 0.5, 1.0])


@dataclass(frozen=True, kw_only=True)
class ReferenceNoise:
    """Rates at which written references go wrong, as references written by people or models do."""

    fact_lost: float = 0.2
    """Chance that a fact of the source is left out (one fact always stays)."""
    fact_altered: float = 0.2
    """Chance that one slot of a kept fact holds another word."""
    value_lost: float = 0.25
    """Chance that a wanted value is left out."""
    value_neighbour: float = 0.4
    """Chance that a wanted value is replaced by its neighbour on the circle."""
    level_step: float = 0.4
    """Chance that a value's level moves one step of the grid up or down: +-0.5 may become 0, which
    loses the value, and steps beyond +-1 stay at +-1.
    """


@dataclass
class Plan:
    """Contents of n texts before wording: facts [n, MAX_FACTS] (predicate -1: none) and value
    levels [n, K].
    """

    predicate: np.ndarray
    a: np.ndarray
    b: np.ndarray
    levels: np.ndarray

    def facts(self, row: int) -> list[tuple[int, int, int]]:
        """Facts of one text in order."""
        triples = zip(self.predicate[row], self.a[row], self.b[row], strict=True)
        return [(int(p), int(a), int(b)) for p, a, b in triples if p >= 0]


def draw_facts(rng: np.random.Generator, counts: np.ndarray) -> Plan:
    """Distinct predicates per text with uniform slots; counts [n] facts each."""
    n = len(counts)
    predicate = rng.random((n, len(PREDICATES))).argsort(axis=1)[:, :MAX_FACTS]
    predicate[np.arange(MAX_FACTS)[None, :] >= counts[:, None]] = -1
    slots = rng.integers(0, SLOT_WORDS, (2, n, MAX_FACTS))
    return Plan(predicate, slots[0], slots[1], np.zeros((n, K)))


def draw_levels(rng: np.random.Generator, n: int, shares: tuple[float, ...]) -> np.ndarray:
    """Value vectors [n, K] on the grid; shares[i] is the chance of i non-zero values."""
    count = rng.choice(len(shares), n, p=shares)
    rank = rng.random((n, K)).argsort(axis=1).argsort(axis=1)
    levels = rng.choice(LEVELS, (n, K), p=[0.25, 0.1, 0.15, 0.5])
    return np.where(rank < count[:, None], levels, 0.0)


def draw_shifts(rng: np.random.Generator, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Shifts [n, K] for given values [n, K], and the pole's name where a row moves along an axis
    ("" elsewhere).

    Kinds: add a value, swap one for another, reverse one, add two, move along an axis. Rows are
    arranged so that the
    target has at most MAX_FACTS non-zero values; rows that move along an axis start neutral
    (`values` is changed in place).
    """
    n = len(values)
    order = (rng.random((n, K)) + (values != 0)).argsort(axis=1)
    x, x2, y = order[:, 0], order[:, 1], order[:, -1]
    rows = np.arange(n)
    has_value = values[rows, y] != 0
    kind = rng.choice(5, n, p=[0.2, 0.35, 0.15, 0.2, 0.1])
    kind = np.where(~has_value & np.isin(kind, (1, 2)), 3, kind)
    kind = np.where((kind == 3) & has_value, 1, kind)
    shift = np.zeros((n, K))
    sign = rng.choice([1.0, -1.0], (2, n), p=[0.65, 0.35])
    small = rng.choice([0.5, 1.0], (2, n), p=[0.2, 0.8])
    add, swap, reverse, two = (kind == i for i in range(4))
    shift[rows[add], x[add]] = sign[0, add]
    shift[rows[swap], y[swap]] = -values[rows[swap], y[swap]]
    weak = np.abs(values[rows, y]) < 1
    shift[rows[swap], x[swap]] = (sign[0] * np.where(weak, 1.0, small[0]))[swap]
    current = values[rows[reverse], y[reverse]]
    shift[rows[reverse], y[reverse]] = -current - np.sign(current)
    shift[rows[two], x[two]] = sign[0, two]
    shift[rows[two], x2[two]] = (sign[1] * small[1])[two]
    poles = _draw_poles(rng, rows[kind == 4], values, shift)
    return shift, [poles.get(row, "") for row in range(n)]


def _draw_poles(
    rng: np.random.Generator, rows: np.ndarray, values: np.ndarray, shift: np.ndarray
) -> dict[int, str]:
    sides = [(axis.positive_name, axis.positive) for axis in SCHWARTZ.axes]
    sides += [(axis.negative_name, axis.negative) for axis in SCHWARTZ.axes]
    picked = {}
    for row, side in zip(
        rows.tolist(), rng.integers(0, len(sides), len(rows)).tolist(), strict=True
    ):
        pole, members = sides[side]
        inside = [SCHWARTZ.index(name) for name in members]
        values[row] = 0.0
        shift[row, inside] = 0.5
        picked[row] = pole
    return picked


class Writer:
    """Puts plans into words; every choice of wording comes from one generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.random() * len(options))]

    def clause(self, value: int, level: float) -> str:
        """One value clause, for example "above all keep everyone safe"."""
        return f"{self.pick(OPENERS[float(level)])} {self.pick(STEMS[SCHWARTZ.names[value]])}"

    def fact(self, fact: tuple[int, int, int]) -> str:
        """One fact in either surface form."""
        predicate = PREDICATES[fact[0]]
        return self.pick(predicate.forms).format(a=predicate.a[fact[1]], b=predicate.b[fact[2]])

    def text(
        self,
        facts: list[tuple[int, int, int]],
        levels: np.ndarray,
        shuffle: bool = False,
        in_order: bool = False,
    ) -> str:
        """A response: a sentence per fact, value clauses joined to the first sentences, in random
        order or in that of the value circle.
        """
        if shuffle:
            facts = [facts[i] for i in self.rng.permutation(len(facts))]
        wanted = np.flatnonzero(levels)
        order = wanted if in_order else self.rng.permutation(wanted)
        clauses = [self.clause(k, levels[k]) for k in order]
        sentences = [self.fact(fact) for fact in facts]
        for i, clause in enumerate(clauses):
            sentences[i % len(sentences)] += f"; {clause}"
        return " ".join(f"{sentence}." for sentence in sentences)

    def query(self, facts: list[tuple[int, int, int]]) -> str:
        """A question about the topics of the facts."""
        topics = [PREDICATES[p].topic for p, _, _ in facts]
        return self.pick(QUERIES).format(topics=" and ".join(topics))

    def instruction(self, shift: np.ndarray, pole: str = "") -> str:
        """What a person would say to ask for this shift."""
        if pole:
            return self.pick(AXIS_PHRASES).format(pole=pole)
        phrases = []
        for k in self.rng.permutation(np.flatnonzero(shift)):
            adjective, *nouns = ADJECTIVES[SCHWARTZ.names[k]]
            template = self.pick(SHIFT_PHRASES[float(shift[k])])
            phrases.append(template.format(adjective=adjective, noun=self.pick(tuple(nouns))))
        return " and ".join(phrases)


def as_dict(levels: np.ndarray) -> dict[str, float]:
    """Non-zero values by name."""
    return {SCHWARTZ.names[k]: float(levels[k]) for k in np.flatnonzero(levels)}


def rewrites(
    n: int = 6000, seed: int = 0, noise: ReferenceNoise | None = None
) -> list[RewriteExample]:
    """Rewriting tasks with instruction, shift, target and a reference; `noise` spoils the
    references.

    A reference's clauses stand in the order in which a prompt names the target's values: a model of
    two layers learns in minutes to go through a list in order, not to tell what of it is still to
    be said.
    """
    rng = np.random.default_rng([seed, 1])
    values = draw_levels(rng, n, (0.25, 0.55, 0.2))
    shift, poles = draw_shifts(rng, values)
    target = np.clip(values + shift, -1, 1)
    needed = np.maximum((values != 0).sum(1), (target != 0).sum(1))
    plan = draw_facts(rng, np.maximum(needed, rng.choice([2, 3], n, p=[0.6, 0.4])))
    writer = Writer(rng)
    records = []
    for row in range(n):
        facts = plan.facts(row)
        spoiled = facts, target[row]
        if noise is not None:
            spoiled = _spoil_facts(rng, facts, noise), _spoil_values(rng, target[row], noise)
        records.append(
            RewriteExample(
                query=writer.query(facts),
                response=writer.text(facts, values[row]),
                instruction=writer.instruction(shift[row], poles[row]),
                values=as_dict(values[row]),
                shift=as_dict(shift[row]),
                target=as_dict(target[row]),
                reference=writer.text(*spoiled, shuffle=True, in_order=True),
                id=f"embedded-{seed}-{row}",
            )
        )
    return records


def paraphrases(n: int = 6000, seed: int = 0) -> list[RewriteExample]:
    """Clean paraphrases: same facts, same values, other words and order.

    Their targets are noise that the reference does not follow, so a model of them keeps facts and
    ignores targets: it stands in
    for a pretrained LM that can copy and has not learned to steer values.
    """
    rng = np.random.default_rng([seed, 2])
    plan = draw_facts(rng, rng.choice([2, 3], n, p=[0.5, 0.5]))
    plan = replace(plan, levels=draw_levels(rng, n, (0.2, 0.4, 0.4)))
    targets = draw_levels(rng, n, (0.1, 0.4, 0.4, 0.1))
    writer = Writer(rng)
    records = []
    for row in range(n):
        facts, levels = plan.facts(row), plan.levels[row]
        records.append(
            RewriteExample(
                query=writer.query(facts),
                response=writer.text(facts, levels),
                instruction="say the same in other words",
                values=as_dict(levels),
                target=as_dict(targets[row]),
                reference=writer.text(facts, levels, shuffle=True),
                id=f"paraphrase-{seed}-{row}",
            )
        )
    return records


def glossary(n: int = 3000, seed: int = 0) -> list[RewriteExample]:
    """Value notation put into words: the source reads "security +1 power -0.5", the reference says
    it.

    A pretrained LM knows what the value words mean before it is asked to steer by them; so does a
    model of these rows. The target is noise here as in `paraphrases`.
    """
    rng = np.random.default_rng([seed, 6])
    levels = draw_levels(rng, n, (0.0, 0.5, 0.3, 0.2))
    targets = draw_levels(rng, n, (0.1, 0.4, 0.4, 0.1))
    writer = Writer(rng)
    records = []
    for row in range(n):
        order = rng.permutation(np.flatnonzero(levels[row]))
        notation = " ".join(f"{SCHWARTZ.names[k]} {levels[row, k]:+g}" for k in order)
        records.append(
            RewriteExample(
                query="Put it into words .",
                response=notation,
                instruction="put it into words",
                values=as_dict(levels[row]),
                target=as_dict(targets[row]),
                reference=" ".join(f"{writer.clause(k, levels[row, k])}." for k in order),
                id=f"glossary-{seed}-{row}",
            )
        )
    return records


def _spoil_facts(
    rng: np.random.Generator, facts: list[tuple[int, int, int]], noise: ReferenceNoise
) -> list[tuple[int, int, int]]:
    kept = [fact for fact in facts if rng.random() >= noise.fact_lost] or facts[:1]
    return [alter_slot(rng, fact) if rng.random() < noise.fact_altered else fact for fact in kept]


def alter_slot(rng: np.random.Generator, fact: tuple[int, int, int]) -> tuple[int, int, int]:
    """The fact with one slot moved to another of its words."""
    p, a, b = fact
    other = int(rng.integers(1, SLOT_WORDS))
    if rng.random() < 0.5:
        return p, (a + other) % SLOT_WORDS, b
    return p, a, (b + other) % SLOT_WORDS


def _spoil_values(
    rng: np.random.Generator, levels: np.ndarray, noise: ReferenceNoise
) -> np.ndarray:
    spoiled = np.zeros(K)
    for k in np.flatnonzero(levels):
        if rng.random() < noise.value_lost:
            continue
        place = (k + rng.choice([-1, 1])) % K if rng.random() < noise.value_neighbour else k
        level = levels[k]
        if rng.random() < noise.level_step:
            level = np.clip(level + rng.choice([-0.5, 0.5]), -1, 1)
        spoiled[place] = level
    return spoiled
