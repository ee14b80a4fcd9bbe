"""Reads embedded texts by plain search, as a check on the generator and on its own parser."""

from __future__ import annotations

from visa_core.data.embedded.lexicon import (
    ADJECTIVES,
    AXIS_PHRASES,
    OPENERS,
    PREDICATES,
    SHIFT_PHRASES,
    STEMS,
)
from visa_core.values import SCHWARTZ

CLAUSES = {
    f"{opener} {stem}": (value, level)
    for value, stems in STEMS.items()
    for stem in stems
    for level, openers in OPENERS.items()
    for opener in openers
}
PHRASES = {
    template.format(adjective=ADJECTIVES[name][0], noun=noun): (name, size)
    for name in SCHWARTZ.names
    for noun in ADJECTIVES[name][1:]
    for size, templates in SHIFT_PHRASES.items()
    for template in templates
}
POLES = {axis.positive_name: axis.positive for axis in SCHWARTZ.axes} | {
    axis.negative_name: axis.negative for axis in SCHWARTZ.axes
}
AXIS_SHIFTS = {
    phrase.format(pole=pole): dict.fromkeys(members, 0.5)
    for phrase in AXIS_PHRASES
    for pole, members in POLES.items()
}


def clauses_in(text: str) -> dict[str, float]:
    """Values of the clauses that stand in the text, by plain search."""
    return dict(CLAUSES[clause] for clause in CLAUSES if clause in text)


def facts_in(text: str) -> set[tuple[int, str, str]]:
    """Predicate and slot words of each fact, by the words alone: each belongs to one predicate."""
    words = set(text.replace(".", "").replace(";", "").split())
    found = set()
    for p, predicate in enumerate(PREDICATES):
        for a in words & set(predicate.a):
            found |= {(p, a, b) for b in words & set(predicate.b)}
    return found


def wished(instruction: str) -> dict[str, float]:
    """The shift that an instruction's words ask for."""
    if instruction in AXIS_SHIFTS:
        return AXIS_SHIFTS[instruction]
    return dict(PHRASES[phrase] for phrase in instruction.split(" and "))
