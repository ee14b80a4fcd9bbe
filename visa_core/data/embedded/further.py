"""Four further values for the embedded corpus, as a house might add them to Schwartz's ten."""

from __future__ import annotations

import numpy as np

from visa_core.data.embedded.corpus import LEVELS, Writer, draw_facts
from visa_core.data.embedded.lexicon import OPENERS, STEMS
from visa_core.types import Dialogue, RewriteExample
from visa_core.value_space import Dimension, ValueSpace
from visa_core.values import SCHWARTZ

SHARES = (0.1, 0.3, 0.4, 0.2)
"""Chances of 0 to 3 values in a text."""

FURTHER_STEMS: dict[str, tuple[str, ...]] = {
    "thrift": (
        "spend as little as possible",
        "save every penny",
        "mend what is torn",
        "compare three offers",
    ),
    "humour": (
        "crack a joke",
        "laugh about mishaps",
        "wink while you explain",
        "end on a pun",
    ),
    "punctuality": (
        "arrive on the minute",
        "meet each deadline",
        "set an early alarm",
        "watch the timetable",
    ),
    "humility": (
        "admit your limits",
        "stay modest about merits",
        "let colleagues take credit",
        "say that you may err",
    ),
}
"""Value -> verb phrases; the first two name the value openly, the last two only imply it."""

FOURTEEN = ValueSpace(
    name="schwartz-and-house",
    dimensions=(
        *SCHWARTZ.dimensions,
        Dimension(name="thrift", title="Thrift", definition="Spending little, wasting nothing."),
        Dimension(name="humour", title="Humour", definition="Taking things with a laugh."),
        Dimension(name="punctuality", title="Punctuality", definition="Being on time."),
        Dimension(name="humility", title="Humility", definition="Knowing one's limits."),
    ),
    axes=SCHWARTZ.axes,
)


class FurtherWriter(Writer):
    """A Writer of all fourteen values."""

    def clause(self, value: int, level: float) -> str:
        """One value clause."""
        stems = (STEMS | FURTHER_STEMS)[FOURTEEN.names[value]]
        return f"{self.pick(OPENERS[float(level)])} {self.pick(stems)}"


def dialogues(n: int, seed: int = 0, *, only_new: bool = False) -> list[Dialogue]:
    """Queries and responses with their values, up to three of all fourteen; with `only_new` of the
    further four alone, as data that was collected for them.
    """
    rng = np.random.default_rng([seed, 7])
    plan = draw_facts(rng, rng.choice([1, 2, 3], n, p=[0.1, 0.5, 0.4]))
    first = SCHWARTZ.size if only_new else 0
    writer, records = FurtherWriter(rng), []
    for row in range(n):
        levels = _levels(rng, first, int(rng.choice(4, p=SHARES)))
        facts = plan.facts(row)
        records.append(
            Dialogue(
                query=writer.query(facts),
                response=writer.text(facts, levels, shuffle=True),
                values=named(levels),
                id=f"further-{seed}-{row}",
            )
        )
    return records


def rewrites(n: int, seed: int = 0, *, only_new: bool = False) -> list[RewriteExample]:
    """Rewriting tasks with clean references towards one to three of all fourteen values, or with
    `only_new` of the further four alone; sources hold up to two values of the same.
    """
    rng = np.random.default_rng([seed, 8])
    plan = draw_facts(rng, rng.choice([2, 3], n, p=[0.6, 0.4]))
    first = SCHWARTZ.size if only_new else 0
    writer, records = FurtherWriter(rng), []
    for row in range(n):
        facts = plan.facts(row)
        values = _levels(rng, first, int(rng.choice(3, p=[0.25, 0.55, 0.2])))
        target = _levels(rng, first, 1 + int(rng.choice(3, p=[0.5, 0.35, 0.15])))
        shift = target - values
        records.append(
            RewriteExample(
                query=writer.query(facts),
                response=writer.text(facts, values),
                instruction="rewrite it towards the target",
                values=named(values),
                shift=named(shift),
                target=named(target),
                reference=writer.text(facts, target, shuffle=True, in_order=True),
                id=f"further-task-{seed}-{row}",
            )
        )
    return records


def _levels(rng: np.random.Generator, first: int, count: int) -> np.ndarray:
    levels = np.zeros(len(FOURTEEN))
    said = rng.permutation(np.arange(first, len(FOURTEEN)))[:count]
    levels[said] = rng.choice(LEVELS, len(said), p=[0.25, 0.1, 0.15, 0.5])
    return levels


def named(levels: np.ndarray) -> dict[str, float]:
    """Non-zero values by name."""
    return {FOURTEEN.names[k]: float(levels[k]) for k in np.flatnonzero(levels)}
