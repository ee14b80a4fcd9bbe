"""An annotator that needs nothing: counts value words, and lets the explanation's decide.

It reads English, and it counts words: good enough to run the whole pipeline anywhere and to test
it, no judge of values. What it makes of labelled dialogues is measured in bench/construction.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from visa_core.data.annotate.annotator import Annotation, Keyed, Levels, Record
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ

WORDS = Path(__file__).parent / "words" / "english.json"
TOKEN = re.compile(r"[a-z]+(?:['-][a-z]+)*")
CLAUSE = re.compile(r"[.;:!?\n]|,?\s\b(?:but|while|whereas|although|however)\b")
OTHERS = re.compile(
    r"\b(?:the others?|(?:the )?other (?:response|answer|option|one|candidate)s?"
    r"|the rest|rejected)\b"
)
COMPARED = re.compile(r"\b(?:than|unlike|compared (?:to|with)|over)\s*$")
NEGATED_WITHIN = 3
"""A negator turns the value words among this many words after it."""
STRONG = 3
"""Value words of one kind, net, from which a response expresses the value strongly."""

Net = tuple[float, ...]
"""Value words for a value less those against it, K entries."""


class LexiconAnnotator:
    """Counts value words. Raises ValueError for a space whose values have no keywords."""

    paid = False

    def __init__(self, space: ValueSpace = SCHWARTZ) -> None:
        self.space = space
        text = WORDS.read_text(encoding="utf-8")
        words = json.loads(text)
        digest = hashlib.blake2b(digest_size=6)
        digest.update(f"{text}{json.dumps(space.to_dict())}".encode())
        self.name = f"lexicon-2-{digest.hexdigest()}"
        self.negators = frozenset(words["negators"])
        self.intensifiers = frozenset(words["intensifiers"])
        self._exact: dict[str, list[tuple[int, int]]] = {}
        self._prefixes: list[tuple[str, tuple[int, int]]] = []
        self._phrases: dict[str, list[tuple[list[str], tuple[int, int]]]] = {}
        self._fill(words)
        self._known: dict[str, tuple[tuple[int, int], ...]] = {}
        self._net = lru_cache(maxsize=8192)(self.net)

    def annotate(self, items: Iterable[Keyed], record: Record) -> None:
        """See Annotator.annotate; in order."""
        for key, comparison in items:
            chosen, rejected = self.levels(
                comparison.chosen, comparison.rejected, comparison.explanation
            )
            record(key, Annotation(chosen=chosen, rejected=rejected))

    def levels(self, chosen: str, rejected: str, explanation: str) -> tuple[Levels, Levels]:
        """Levels of both responses; where the explanation speaks of a value, it decides."""
        of_chosen = [_level(net, STRONG) for net in self._net(chosen)]
        of_rejected = [_level(net, STRONG) for net in self._net(rejected)]
        if explanation:
            about_chosen, about_rejected = self.explained(explanation)
            for k in range(self.space.size):
                a, b = about_chosen[k], about_rejected[k]
                if a:
                    of_chosen[k] = _stronger(of_chosen[k], _level(a, 2))
                if b:
                    of_rejected[k] = _stronger(of_rejected[k], _level(b, 2))
                if a != b:
                    of_chosen[k], of_rejected[k] = _apart(
                        of_chosen[k], of_rejected[k], 1 if a > b else -1, bool(a)
                    )
        return tuple(of_chosen), tuple(of_rejected)

    def net(self, text: str) -> Net:
        """Value words of a text, for less against, by value."""
        total = [0.0] * self.space.size
        for k, weight in self._hits(text):
            total[k] += weight
        return tuple(total)

    def explained(self, explanation: str) -> tuple[Net, Net]:
        """What an explanation says of the chosen and of the rejected response: clause by clause,
        the chosen one unless the clause speaks of the others.
        """
        nets = [[0.0] * self.space.size, [0.0] * self.space.size]
        for clause in CLAUSE.split(explanation.lower()):
            others = OTHERS.search(clause)
            of_others = others is not None and not COMPARED.search(clause[: others.start()])
            emphasis = 2.0 if self.intensifiers & set(TOKEN.findall(clause)) else 1.0
            for k, weight in self._hits(clause):
                nets[of_others][k] += weight * emphasis
        return tuple(nets[0]), tuple(nets[1])

    def _hits(self, text: str) -> Iterator[tuple[int, float]]:
        """(value, +1 or -1) of each value word; a phrase's own words do not count beside it."""
        words = TOKEN.findall(text.lower())
        negated_until = phrase_until = -1
        known, phrases = self._known, self._phrases
        for at, word in enumerate(words):
            if word in self.negators:
                negated_until = at + NEGATED_WITHIN
            if at <= phrase_until:
                continue
            found = known.get(word)
            if found is None:
                found = self._look_up(word)
            if word in phrases:
                length, in_phrase = self._phrase(words, at)
                if length:
                    found, phrase_until = in_phrase, at + length - 1
            for k, sign in found:
                yield k, float(-sign if at <= negated_until else sign)

    def _phrase(self, words: list[str], at: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Words of the longest phrase that begins here, and what it stands for; 0 without one."""
        best, found = 0, []
        for phrase, meaning in self._phrases[words[at]]:
            if len(phrase) < best or not _begins(phrase, words[at : at + len(phrase)]):
                continue
            found = [*found, meaning] if len(phrase) == best else [meaning]
            best = len(phrase)
        return best, tuple(found)

    def _look_up(self, word: str) -> tuple[tuple[int, int], ...]:
        found = set(self._exact.get(word, ()))
        found |= {entry for prefix, entry in self._prefixes if word.startswith(prefix)}
        if len(self._known) > 200_000:
            self._known.clear()
        self._known[word] = tuple(sorted(found))
        return self._known[word]

    def _fill(self, words: dict[str, Any]) -> None:
        ignored = set(words["ignored"])
        for k, dimension in enumerate(self.space.dimensions):
            more = words["values"].get(dimension.name, {}) if self.space == SCHWARTZ else {}
            keywords = [word for word in dimension.keywords if word.lower() not in ignored]
            if not keywords and not more:
                raise ValueError(
                    f"the lexicon annotator needs keywords, and value {dimension.name!r} of space "
                    f"{self.space.name!r} has none"
                )
            for sign, entries in (
                (1, [*keywords, *more.get("for", ())]),
                (-1, more.get("against", ())),
            ):
                for entry in entries:
                    self._add(entry.lower(), (k, sign))

    def _add(self, entry: str, meaning: tuple[int, int]) -> None:
        if entry.endswith("*") and " " not in entry:
            self._prefixes.append((entry[:-1], meaning))
            return
        words = entry.split()
        if len(words) > 1:
            self._phrases.setdefault(words[0], []).append((words, meaning))
            return
        known = self._exact.setdefault(entry, [])
        if meaning not in known:
            known.append(meaning)


def _begins(phrase: list[str], words: list[str]) -> bool:
    """Whether the words are the phrase; a last word with * stands for all that begin with it."""
    if len(words) < len(phrase) or words[:-1] != phrase[:-1]:
        return False
    last = phrase[-1]
    return words[-1].startswith(last[:-1]) if last.endswith("*") else words[-1] == last


def _level(net: float, strong: float) -> int:
    """A net count as a level in half steps."""
    if net == 0:
        return 0
    size = 2 if abs(net) >= strong else 1
    return size if net > 0 else -size


def _stronger(own: int, told: int) -> int:
    """What is told, or more of the same where the text itself says more."""
    return max(own, told) if told > 0 else min(own, told)


def _apart(chosen: int, rejected: int, direction: int, about_chosen: bool) -> tuple[int, int]:
    """Both levels with the explanation's order: the chosen one above (direction 1) or below the
    rejected one by at least a half step, the one that was spoken of staying where it is.
    """
    if direction * (chosen - rejected) >= 1:
        return chosen, rejected
    if about_chosen:
        rejected = max(-2, min(2, chosen - direction))
        return (chosen, rejected) if rejected != chosen else (rejected + direction, rejected)
    chosen = max(-2, min(2, rejected + direction))
    return (chosen, rejected) if rejected != chosen else (chosen, chosen - direction)
