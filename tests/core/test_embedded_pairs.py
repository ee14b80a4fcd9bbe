"""Labels of the scorers' training texts, and the truth about rewrites, against hand-read cases."""

from __future__ import annotations

import pytest
import torch

from tests.reading import wished
from visa_core.data import embedded
from visa_core.data.embedded import truth
from visa_core.data.embedded.lexicon import PREDICATES, STEMS
from visa_core.data.embedded.pairs import DAMAGED, nli_label
from visa_core.types import NLIPair
from visa_core.values import SCHWARTZ

MEETING = "Amara leads the meeting at 4am"
LED = "The meeting at 4am is led by Amara"
TRAIN = "The train to Oslo leaves from platform 1"
SHOP = "The shop sells 21 lamps a day"
SAFE = "above all keep everyone safe"
NO_POWER = "ideally make rivals obey"
SOURCE = f"{MEETING}; {SAFE}. {TRAIN}."


def vector(**levels: float) -> torch.Tensor:
    return SCHWARTZ.vector(levels)


def test_values_of_hand_read_texts() -> None:
    assert truth.values(SOURCE).equal(vector(security=1))
    assert truth.values(f"{MEETING}; {SAFE}; {NO_POWER}.").equal(vector(security=1, power=0.5))
    assert truth.values(f"{MEETING}; never keep everyone safe.").equal(vector(security=-1))
    assert truth.values(f"{MEETING}.").equal(vector())


def test_levels_in_conflict_are_averaged_and_repeats_count_once() -> None:
    conflict = f"{SAFE}; you need not keep everyone safe."
    assert truth.values(conflict).equal(vector(security=0.25))
    assert truth.values(f"{SAFE}; {SAFE}; never check the locks twice.").equal(vector())
    assert truth.values(f"{SAFE}; {SAFE}.").equal(vector(security=1))


def test_case_and_blanks_do_not_matter_but_words_do() -> None:
    assert truth.parse(f"  {LED.lower()} ;ABOVE ALL   keep everyone safe .").facts == ((0, 0, 0),)
    assert truth.values("Above all keep everyone safe.").equal(vector(security=1))
    assert truth.values("above all keep everyone.").equal(vector())
    assert truth.parse("Amara leads the meeting at 4am today.").facts == ()


@pytest.mark.parametrize(
    ("text", "junk", "sentences"),
    [
        ("", 0, 0),
        ("   ", 0, 0),
        (SOURCE, 0, 2),
        (SOURCE[:-1], 1, 2),
        (f"{MEETING}. . {TRAIN}.", 1, 3),
        (f"{MEETING}; ; {SAFE}.", 1, 1),
        ("Amara Amara leads.", 1, 1),
        (f"blah; {MEETING}. blah.", 2, 2),
    ],
)
def test_what_cannot_be_read_is_junk(text: str, junk: int, sentences: int) -> None:
    parsed = truth.parse(text)
    assert (parsed.junk, len(parsed.sentences)) == (junk, sentences)


SCORES = {
    "copy": (SOURCE, {"fwd": 1, "bwd": 1, "l2": 2**0.5, "cos": 0, "length": 19}),
    "perfect": (
        f"Platform 1 serves the train to Oslo; {NO_POWER}. {LED}; always obey the rules.",
        {"fwd": 1, "bwd": 1, "l2": (0.5**2 + 1) ** 0.5, "cos": 0.5 / 1.25**0.5},
    ),
    "dropped fact": (
        f"{MEETING}.",
        {"fwd": 0.5, "bwd": 1, "consistency": 2 / 3, "facts_kept": 0.5},
    ),
    "altered fact": (
        f"{MEETING}. The train to Oslo leaves from platform 2.",
        {"fwd": 0.5, "bwd": 0.5, "facts_kept": 0.5, "facts_added": 1},
    ),
    "added fact": (
        f"{MEETING}. {TRAIN}. {SHOP}.",
        {"fwd": 1, "bwd": 2 / 3, "consistency": 8 / 9, "facts_kept": 1, "facts_added": 1},
    ),
    "added fact in a sentence of a true one": (
        f"{MEETING}; {SHOP}. {TRAIN}.",
        {"fwd": 1, "bwd": 0.5, "facts_added": 1},
    ),
    "repeated clause": (
        f"{MEETING}; {NO_POWER}. {TRAIN}; {NO_POWER}.",
        {"fwd": 1, "bwd": 1, "l2": 0.5, "cos": 1, "repeated": 1, "unparsable": 0},
    ),
    "fact said in both forms": (f"{MEETING}. {LED}. {TRAIN}.", {"bwd": 1, "repeated": 1}),
    "unparsable sentence": (
        f"{MEETING}. {TRAIN} often.",
        {"fwd": 0.5, "bwd": 0.5, "unparsable": 0.5, "facts_kept": 0.5, "facts_added": 0},
    ),
    "junk said twice": (f"{MEETING}; blah. {TRAIN}; blah.", {"repeated": 0, "unparsable": 1}),
    "values only": (
        f"{NO_POWER}.",
        {"fwd": 0, "bwd": 0, "facts_kept": 0, "unparsable": 0, "l2": 0.5, "cos": 1},
    ),
    "sentence without a fact": (f"{MEETING}. {TRAIN}. {SAFE}.", {"fwd": 1, "bwd": 2 / 3}),
    "nothing": ("", {"fwd": 0, "bwd": 0, "consistency": 0, "length": 0, "unparsable": 0, "l2": 1}),
}


@pytest.mark.parametrize("case", SCORES)
def test_truth_about_hand_read_rewrites(case: str) -> None:
    """Source: two facts and security +1; wanted: power +1 instead."""
    rewrite, expected = SCORES[case]
    score = truth.score(SOURCE, rewrite, vector(power=1))
    assert {key: score[key] for key in expected} == pytest.approx(expected, abs=1e-6)


PREMISE = f"{MEETING}; {SAFE}. {TRAIN}."


@pytest.mark.parametrize(
    ("hypothesis", "label"),
    [
        (f"{LED}.", "entailment"),
        (f"{TRAIN}; never keep everyone safe. {MEETING}.", "entailment"),
        (f"{SHOP}.", "neutral"),
        (f"{MEETING}. {SHOP}.", "neutral"),
        ("Bruno leads the meeting at 4am.", "contradiction"),
        ("The meeting at 5am is led by Amara.", "contradiction"),
        (f"{SHOP}. Platform 2 serves the train to Oslo.", "contradiction"),
        (f"{SAFE}.", "neutral"),
        (f"{MEETING}. {SAFE}.", "neutral"),
        ("", "neutral"),
        ("Amara leads meeting the at 4am.", "neutral"),
        (f"{MEETING}", "neutral"),
        (f"{MEETING}; blah.", "neutral"),
        ("Bruno leads the meeting at 4am. blah blah.", "contradiction"),
    ],
)
def test_labels_of_hand_read_pairs(hypothesis: str, label: str) -> None:
    assert nli_label(PREMISE, hypothesis) == label


def test_a_premise_that_says_two_things_supports_both() -> None:
    both = f"{MEETING}. Bruno leads the meeting at 4am."
    assert nli_label(both, f"{LED}.") == "entailment"
    assert nli_label(both, "Chloe leads the meeting at 4am.") == "contradiction"


@pytest.fixture(scope="module")
def pairs() -> list[NLIPair]:
    return embedded.nli_pairs(1500, 8)


def test_pair_labels_follow_from_the_facts(pairs: list[NLIPair]) -> None:
    """For pairs of clean texts, from the words of the facts alone."""
    seen = set()
    for pair in pairs:
        before, after = truth.parse(pair.premise), truth.parse(pair.hypothesis)
        if before.junk or after.junk or not all(own for own, _ in after.sentences):
            continue
        known = {PREDICATES[p].topic: (a, b) for p, a, b in before.facts}
        verdicts = [
            "neutral"
            if PREDICATES[p].topic not in known
            else "entailment"
            if known[PREDICATES[p].topic] == (a, b)
            else "contradiction"
            for p, a, b in after.facts
        ]
        worst = next(v for v in ("contradiction", "neutral", "entailment") if v in verdicts)
        assert pair.label == worst
        seen.add((worst, len(after.facts)))
    assert len(seen) == 6, "each label with one fact and with two"


def test_pairs_cover_broken_and_fact_free_text(pairs: list[NLIPair]) -> None:
    parsed = [(pair.label, truth.parse(pair.hypothesis)) for pair in pairs]
    broken = [label for label, p in parsed if p.junk]
    vacuous = [label for label, p in parsed if not p.junk and not p.facts]
    assert 0.1 < len(broken) / len(pairs) < 0.2 and set(broken) <= {"neutral", "contradiction"}
    assert 0.02 < len(vacuous) / len(pairs) < 0.08 and set(vacuous) == {"neutral"}


def test_dialogues_carry_what_their_text_says() -> None:
    records = embedded.dialogues(600, 2)
    odd = 0
    for d in records:
        parsed = truth.parse(d.response)
        assert d.values == SCHWARTZ.as_dict(truth.values(d.response))
        levels = [k for k, _ in parsed.clauses]
        odd += bool(parsed.junk or parsed.repeated or len(levels) > len(set(levels)))
        if not parsed.junk:
            assert {PREDICATES[p].topic in d.query for p, _, _ in parsed.facts} == {True}
    assert 0.7 * DAMAGED < odd / len(records) < DAMAGED, "some kinds of damage are harmless"
    assert {abs(level) for d in records for level in d.values.values()} >= {0.25, 0.5, 1.0}


def test_preferences_differ_in_values_alone_and_say_so() -> None:
    for pair in embedded.preferences(200, 3):
        chosen, rejected = truth.parse(pair.chosen), truth.parse(pair.rejected)
        assert set(chosen.facts) == set(rejected.facts) and len(chosen.facts) == 2
        assert all(PREDICATES[p].topic in pair.prompt for p, _, _ in chosen.facts)
        change = SCHWARTZ.as_dict(truth.values(chosen) - truth.values(rejected))
        wish = pair.explanation.removeprefix("To suit me the other answer would have to change: ")
        wish = wish.removesuffix(".")
        assert wished(wish) == change != {}


def test_stems_are_known_to_the_reader() -> None:
    for name, stems in STEMS.items():
        for stem in stems:
            assert truth.values(f"always {stem}.").equal(SCHWARTZ.vector({name: 1.0}))
