"""Choices between four responses to one prompt, and their reasons: preferences in small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from visa_core.data.embedded.corpus import MAX_FACTS, Writer, draw_facts, draw_levels
from visa_core.data.embedded.lexicon import ADJECTIVES
from visa_core.types import PreferencePair
from visa_core.values import SCHWARTZ

CANDIDATES = 4
NO_REASON = 0.25
"""Share of choices without an explanation."""
SECOND_PERSON = 0.25
"""Share of prompts whose responses a second person, with other values, chooses from as well."""


def choices(n: int = 1000, seed: int = 0) -> Iterator[PreferencePair]:
    """For each of n prompts the pairs of a chosen response with the three others: all four hold
    the same facts, and the chosen one's values are nearest to the choosing person's.

    Most choices are explained: by a value that the chosen response serves or goes against more
    than the others do.
    """
    rng = np.random.default_rng([seed, 7])
    plan = draw_facts(rng, np.full(n, MAX_FACTS - 1))
    candidates = draw_levels(rng, n * CANDIDATES, (0.1, 0.5, 0.4)).reshape(n, CANDIDATES, -1)
    persons = draw_levels(rng, 2 * n, (0.0, 0.2, 0.5, 0.3)).reshape(n, 2, -1)
    second = rng.random(n) < SECOND_PERSON
    writer = Writer(rng)
    for row in range(n):
        facts = plan.facts(row)
        prompt = writer.query(facts)
        texts = [writer.text(facts, levels, shuffle=True) for levels in candidates[row]]
        for person in range(1 + int(second[row])):
            best = int(((candidates[row] - persons[row, person]) ** 2).sum(1).argmin())
            why = _reason(rng, np.delete(candidates[row], best, 0), candidates[row, best])
            for other in range(CANDIDATES):
                if texts[other] != texts[best]:
                    yield PreferencePair(
                        prompt=prompt,
                        chosen=texts[best],
                        rejected=texts[other],
                        explanation=why,
                        id=f"choice-{seed}-{row}{'ab'[person]}-{best}{other}",
                    )


def _reason(rng: np.random.Generator, others: np.ndarray, chosen: np.ndarray) -> str:
    """What sets the chosen vector apart from the others' mean, in words; "" where nothing does."""
    apart = chosen - others.mean(0)
    k = int(np.abs(apart).argmax())
    if rng.random() < NO_REASON or not chosen[k]:
        return ""
    much = "much " if abs(apart[k]) > 0.75 else ""
    more = "more" if apart[k] > 0 else "less"
    return f"It is {much}{more} {ADJECTIVES[SCHWARTZ.names[k]][0]} than the others."
