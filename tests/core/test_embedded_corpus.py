"""The embedded corpus says what its records claim; references go wrong at the documented rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from tests.reading import AXIS_SHIFTS, CLAUSES, PHRASES, clauses_in, facts_in, wished
from visa_core.data import embedded
from visa_core.data.embedded import truth
from visa_core.data.embedded.corpus import LEVELS, Writer, draw_facts, draw_levels, glossary
from visa_core.data.embedded.lexicon import ADJECTIVES, OPENERS, PREDICATES, SHIFT_PHRASES, STEMS
from visa_core.types import RewriteExample
from visa_core.values import SCHWARTZ

CLEAN = embedded.ReferenceNoise(
    **{field.name: 0.0 for field in fields(embedded.ReferenceNoise)},
)
GENERATORS = (
    embedded.rewrites,
    embedded.paraphrases,
    glossary,
    embedded.dialogues,
    embedded.nli_pairs,
    embedded.preferences,
)


def test_slot_words_belong_to_one_predicate() -> None:
    slots = [words for predicate in PREDICATES for words in (predicate.a, predicate.b)]
    assert all(len(set(words)) == len(words) >= 16 for words in slots)
    every = [word for words in slots for word in words]
    assert len(set(every)) == len(every)
    assert not any(" " in word for word in every)
    assert len({predicate.topic for predicate in PREDICATES}) == len(PREDICATES)


def test_no_wording_has_two_meanings() -> None:
    wordings = [
        form.format(a=a, b=b).lower()
        for predicate in PREDICATES
        for form in predicate.forms
        for a in predicate.a
        for b in predicate.b
    ]
    assert len(set(wordings)) == len(wordings)
    stems = [stem for own in STEMS.values() for stem in own]
    openers = [opener for own in OPENERS.values() for opener in own]
    assert len(CLAUSES) == len(stems) * len(openers)
    assert set(STEMS) == set(SCHWARTZ.names) == set(ADJECTIVES)
    assert sorted(OPENERS) == sorted(LEVELS)
    assert len(PHRASES) == len(SCHWARTZ.names) * sum(
        sum(2 if "{noun}" in template else 1 for template in templates)
        for templates in SHIFT_PHRASES.values()
    )


def test_each_value_is_also_implied_without_its_name() -> None:
    """The last two stems of a value use none of the words that instructions use for it."""
    for name, stems in STEMS.items():
        assert len(stems) >= 4
        for stem in stems[2:]:
            assert not set(stem.split()) & {name, *ADJECTIVES[name]}


@pytest.mark.parametrize("shuffle", [False, True])
def test_parsing_gives_back_the_plan(shuffle: bool) -> None:
    rng = np.random.default_rng(3)
    plan = draw_facts(rng, rng.choice([1, 2, 3], 200))
    levels = draw_levels(rng, 200, (0.2, 0.3, 0.3, 0.2))
    writer = Writer(rng)
    for row in range(200):
        facts = plan.facts(row)
        parsed = truth.parse(writer.text(facts, levels[row], shuffle))
        told = list(parsed.facts)
        assert (sorted(told) if shuffle else told) == (sorted(facts) if shuffle else facts)
        assert dict(parsed.clauses) == {
            k: levels[row, k] for k in range(SCHWARTZ.size) if levels[row, k]
        }
        assert (parsed.junk, parsed.repeated, len(parsed.sentences)) == (0, 0, len(facts))


@pytest.fixture(scope="module")
def clean() -> list[RewriteExample]:
    return embedded.rewrites(300, 11)


def test_responses_say_the_values_of_the_record(clean: list[RewriteExample]) -> None:
    for e in clean:
        assert clauses_in(e.response) == e.values
        assert truth.values(e.response).equal(SCHWARTZ.vector(e.values))


def test_the_query_asks_about_the_facts_of_the_response(clean: list[RewriteExample]) -> None:
    for e in clean:
        told = facts_in(e.response)
        assert len(told) == len(truth.parse(e.response).facts)
        asked = {p for p, predicate in enumerate(PREDICATES) if predicate.topic in e.query}
        assert asked == {p for p, _, _ in told}


def test_instructions_ask_for_the_shift(clean: list[RewriteExample]) -> None:
    for e in clean:
        assert wished(e.instruction) == e.shift
    kinds = {len(e.shift) for e in clean}
    assert {1, 2} <= kinds, "single values, swaps and pairs must all occur"
    assert any(e.instruction in AXIS_SHIFTS for e in clean)


def test_targets_are_values_plus_shift_clipped(clean: list[RewriteExample]) -> None:
    clipped = 0
    for e in clean:
        for name in SCHWARTZ.names:
            total = e.values.get(name, 0.0) + e.shift.get(name, 0.0)
            assert e.target.get(name, 0.0) == min(1.0, max(-1.0, total))
        assert e.target != e.values, "every task asks for a change"
        clipped += any(e.shift[k] + e.values.get(k, 0.0) != e.target.get(k, 0.0) for k in e.shift)
    assert clipped < len(clean) / 2


@pytest.mark.parametrize("noise", [None, CLEAN, embedded.ReferenceNoise()])
def test_there_are_no_more_clauses_than_sentences(noise: embedded.ReferenceNoise | None) -> None:
    for e in embedded.rewrites(150, 2, noise):
        source, reference = truth.parse(e.response), truth.parse(e.reference)
        assert 1 <= max(len(source.clauses), len(e.target)) <= len(source.facts) <= 3
        assert (reference.junk, reference.repeated) == (0, 0)


@pytest.mark.parametrize("noise", [None, CLEAN])
def test_clean_references_are_perfect(noise: embedded.ReferenceNoise | None) -> None:
    records = embedded.rewrites(200, 4, noise)
    for e in records:
        assert facts_in(e.reference) == facts_in(e.response)
        assert clauses_in(e.reference) == e.target
        score = truth.score(e.response, e.reference, SCHWARTZ.vector(e.target))
        assert (score["fwd"], score["bwd"], score["l2"]) == (1, 1, 0)
        assert score["cos"] == pytest.approx(1, abs=1e-6)
    assert sum(e.reference != e.response for e in records) > 190


@pytest.fixture(scope="module")
def noisy() -> list[RewriteExample]:
    return embedded.rewrites(3000, 6, embedded.ReferenceNoise())


def assert_rate(hits: int, total: int, rate: float) -> None:
    assert total > 300, "too few cases to tell"
    assert binomtest(hits, total, rate).pvalue > 1e-4, f"{hits} of {total}, not {rate:.3f}"


def test_reference_clauses_stand_in_the_order_of_the_prompt(clean: list[RewriteExample]) -> None:
    several = 0
    for record in clean:
        text = record.reference
        place = {CLAUSES[clause][0]: text.index(clause) for clause in CLAUSES if clause in text}
        told = sorted(place, key=place.__getitem__)
        assert told == [name for name in SCHWARTZ.names if name in place]
        several += len(told) > 1
    assert several > 20



def test_facts_of_references_are_lost_and_altered_at_the_documented_rates(
    noisy: list[RewriteExample],
) -> None:
    rates = embedded.ReferenceNoise()
    lost, facts, altered, kept = {2: 0, 3: 0}, {2: 0, 3: 0}, 0, 0
    for e in noisy:
        source = {p: (a, b) for p, a, b in truth.parse(e.response).facts}
        told = {p: (a, b) for p, a, b in truth.parse(e.reference).facts}
        assert set(told) <= set(source) and told, "one fact always stays, none is invented"
        facts[len(source)] += len(source)
        lost[len(source)] += len(source) - len(told)
        kept += len(told)
        for p, slots in told.items():
            changed = sum(x != y for x, y in zip(slots, source[p], strict=True))
            assert changed <= 1, "one slot of an altered fact holds another word"
            altered += changed
    for count in (2, 3):
        # where chance takes all facts away, the first one comes back
        rate = rates.fact_lost - rates.fact_lost**count / count
        assert_rate(lost[count], facts[count], rate)
    assert_rate(altered, kept, rates.fact_altered)


def test_values_of_references_are_lost_moved_and_off_at_the_documented_rates(
    noisy: list[RewriteExample],
) -> None:
    """Read off tasks with one wanted value at full level, where each defect shows by itself."""
    rates = embedded.ReferenceNoise()
    single = [e for e in noisy if len(e.target) == 1 and abs(*e.target.values()) == 1]
    told = [(e.target, clauses_in(e.reference)) for e in single]
    written = [(target, values) for target, values in told if values]
    assert_rate(len(told) - len(written), len(told), rates.value_lost)
    moved = stepped = 0
    for target, values in written:
        (wanted,), (said,) = target, values
        distance = abs(SCHWARTZ.index(wanted) - SCHWARTZ.index(said))
        assert distance in (0, 1, SCHWARTZ.size - 1), "a neighbour on the circle"
        moved += distance > 0
        assert abs(target[wanted] - values[said]) in (0, 0.5)
        stepped += target[wanted] != values[said]
    assert_rate(moved, len(written), rates.value_neighbour)
    # half of the steps from an end of the scale lead out of it and change nothing
    assert_rate(stepped, len(written), rates.level_step / 2)


def test_paraphrases_keep_facts_and_values_and_ignore_their_target() -> None:
    records = embedded.paraphrases(200, 1)
    for e in records:
        assert facts_in(e.reference) == facts_in(e.response)
        assert clauses_in(e.reference) == clauses_in(e.response) == e.values
    assert sum(e.reference != e.response for e in records) > 190
    assert sum(e.target == e.values for e in records) < 20


def test_the_glossary_puts_notation_into_words() -> None:
    for e in glossary(200, 1):
        words = e.response.split()
        notation = {name: float(level) for name, level in zip(words[::2], words[1::2], strict=True)}
        assert notation == e.values == clauses_in(e.reference)
        assert len(e.values) == len(truth.parse(e.reference).sentences) >= 1


def test_values_stand_on_the_grid_and_all_occur() -> None:
    levels = draw_levels(np.random.default_rng(0), 4000, (0.25, 0.25, 0.5))
    assert set(np.unique(levels)) == {-1.0, -0.5, 0.0, 0.5, 1.0}
    counts = np.bincount((levels != 0).sum(1), minlength=4)
    for count, share in enumerate((0.25, 0.25, 0.5)):
        assert_rate(int(counts[count]), 4000, share)
    for k in range(SCHWARTZ.size):
        assert_rate(int((levels[:, k] != 0).sum()), 4000, 1.25 / SCHWARTZ.size)


@pytest.mark.parametrize("generate", GENERATORS, ids=lambda f: f.__name__)
def test_the_seed_decides(generate: Callable[..., list]) -> None:
    first = generate(40, 5)
    assert first == generate(40, 5)
    other = generate(40, 6)
    assert len(first) == len(other) == 40
    assert sum(a == b for a, b in zip(first, other, strict=True)) == 0
    assert len({e.id for e in first + other}) == 80


def test_copying_rarely_succeeds(clean: list[RewriteExample]) -> None:
    """Joint success of the copy baseline: facts are kept, the values are hardly ever right."""
    targets = torch.stack([SCHWARTZ.vector(e.target) for e in clean])
    responses = [e.response for e in clean]
    scores = truth.score_all(responses, responses, targets)
    assert all(score["consistency"] == 1 for score in scores)
    assert sum(score["l2"] < 0.8 for score in scores) < 0.08 * len(clean)
