"""Rewriting tasks made of dialogues, and read from each kind of data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests import tiny
from visa_core.data import embedded
from visa_core.data.rewriting import describe_shift, load_rewriting, reconstructions, with_shifts
from visa_core.data.schema import DataError
from visa_core.types import Dialogue
from visa_core.values import SCHWARTZ, VALUEEVAL20, clip_target

DIALOGUES = [
    Dialogue(query=f"q{i}", response=f"r{i}", values=values, id=f"d{i}")
    for i, values in enumerate([None, {}, {"security": 1.0}, {"power": -1.0, "hedonism": 1.0}] * 50)
]


def test_shifts_are_a_function_of_the_seed() -> None:
    first = with_shifts(DIALOGUES, SCHWARTZ, seed=3)
    assert first == with_shifts(DIALOGUES, SCHWARTZ, seed=3)
    other = with_shifts(DIALOGUES, SCHWARTZ, seed=4)
    same = sum(a.shift == b.shift for a, b in zip(first, other, strict=True))
    assert same < 0.1 * len(first)
    assert with_shifts(DIALOGUES[:5], SCHWARTZ, seed=3) == first[:5]


def test_shifts_change_one_or_two_values_towards_what_they_are_not() -> None:
    tasks = with_shifts(DIALOGUES, SCHWARTZ)
    assert Counter(len(task.shift) for task in tasks).keys() == {1, 2}
    sizes, names = Counter(), Counter()
    for dialogue, task in zip(DIALOGUES, tasks, strict=True):
        assert (task.query, task.response, task.id) == (dialogue.query, dialogue.response, task.id)
        values = SCHWARTZ.vector(dialogue.values or {})
        target = clip_target(values, SCHWARTZ.vector(task.shift, limit=2.0))
        for name, size in task.shift.items():
            k = SCHWARTZ.index(name)
            assert target[k] != values[k], "every wish can be granted"
            assert (size < 0) == (values[k] > 0)
            sizes[abs(size)] += 1
            names[name] += 1
        assert task.instruction == describe_shift(task.shift, SCHWARTZ)
        assert task.values == dialogue.values and task.reference is None
    assert sizes.keys() == {0.5, 1.0, 1.5} and len(names) == SCHWARTZ.size


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ({"security": 0.5}, "make it slightly more focused on security"),
        ({"security": -0.5}, "make it slightly less focused on security"),
        ({"power": 1.0}, "make it more focused on power"),
        ({"power": -1.0}, "make it less focused on power"),
        ({"self-direction": 1.5}, "make it far more focused on self-direction"),
        ({"self-direction": -2.0}, "make it far less focused on self-direction"),
        ({"power": 0.1}, "make it slightly more focused on power"),
        (
            {"hedonism": 1.0, "power": -1.5},
            "make it more focused on hedonism and far less focused on power",
        ),
    ],
)
def test_shifts_in_words(shift: dict[str, float], words: str) -> None:
    assert describe_shift(shift, SCHWARTZ) == words


def test_other_spaces_are_described_by_their_titles() -> None:
    name = VALUEEVAL20.names[3]
    title = VALUEEVAL20.dimensions[3].title.lower()
    assert describe_shift({name: 1.0}, VALUEEVAL20) == f"make it more focused on {title}"


def test_reconstructions_aim_at_what_is_there() -> None:
    rows = reconstructions(DIALOGUES[:4])
    assert [row.id for row in rows] == ["d1", "d2", "d3"], (
        "without values there is nothing to aim at"
    )
    for row in rows:
        assert row.reference == row.response and row.target == row.values and row.shift == {}


def test_tasks_of_several_kinds_follow_each_other(tmp_path: Path) -> None:
    path = tiny.write_tasks(tmp_path / "tasks.jsonl", n=3)
    records = load_rewriting([f"jsonl:{path}", "embedded:4,9"])
    assert records[:3] == tiny.examples(3, 1)
    assert records[3:] == embedded.rewrites(4, 9)
    noisy = load_rewriting(["embedded:4,9"], references=True)
    assert noisy == embedded.rewrites(4, 9, embedded.ReferenceNoise())


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "give --data at least once"),
        (["hh:x.jsonl"], "'hh:x.jsonl' holds no rewriting tasks; use jsonl:PATH, embedded or"),
        (["embedded:many"], "'embedded:many': 'many' is not a whole number"),
        (["embedded:5,-1"], "'embedded:5,-1': '-1' is not a whole number"),
        (["embedded:0,1"], "'embedded:0,1': ROWS must be at least 1"),
    ],
)
def test_other_specifications_are_refused(specs: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_rewriting(specs)
