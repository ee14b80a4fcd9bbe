"""From annotated comparisons to triplets: anchors, shifts, splits, duplicates, counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.alignment_file import Rates, write_alignment
from tests.preferences import levels_of, marked, marked_pairs
from tests.tiny import write_lines
from visa_core.data.annotate.annotator import Annotation, pack_levels
from visa_core.data.annotate.stage import Annotated
from visa_core.data.construction import build as building
from visa_core.data.construction.anchors import mark_ambiguous, measure_responses
from visa_core.data.construction.build import build
from visa_core.data.construction.comparison import Comparison
from visa_core.data.construction.config import BuildConfig, TripletConfig
from visa_core.data.construction.near import NearTexts, shingles
from visa_core.data.construction.scratch import clear_pairs, open_scratch, store_pairs
from visa_core.data.construction.statistics import Statistics
from visa_core.data.schema import read_jsonl_strict
from visa_core.types import Dialogue, RewriteExample


class MarkReader:
    """An annotator that reads the marks of `tests.preferences.marked`."""

    name, paid = "marks", False

    def annotate(self, items: Any, record: Any) -> None:
        for key, comparison in items:
            chosen, rejected = (
                tuple(int(2 * level) for level in levels_of(text).values())
                for text in (comparison.chosen, comparison.rejected)
            )
            record(key, Annotation(chosen=chosen, rejected=rejected))


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "make_annotator", lambda *_: MarkReader())


def pairs_of(rows: list[tuple[str, str, list[int], list[int]]], tmp_path: Path) -> Any:
    """A scratch data base of comparisons: texts and levels in half steps of two values."""
    db = open_scratch(tmp_path / "s.sqlite")
    annotated = [
        Annotated(
            key=str(i).encode(),
            comparison=Comparison(prompt="p", chosen=chosen, rejected=rejected, id=str(i)),
            annotation=Annotation(chosen=tuple(a), rejected=tuple(b)),
        )
        for i, (chosen, rejected, a, b) in enumerate(rows)
    ]
    assert store_pairs(db, NearTexts(db, "root", 1.0, chains=True), annotated) == 0
    measure_responses(db)
    return db


def test_ambiguity_is_the_variance_over_a_responses_pairs(tmp_path: Path) -> None:
    """c is read as (1, 0), (0, 0) and (0.5, 0): mean (0.5, 0), mean squared distance 1/6. d is read
    as (-1, 1) and (1, 1): mean (0, 1), mean squared distance 1. Others stand alone or agree.
    """
    rows = [
        ("c", "x", [2, 0], [0, 0]),
        ("c", "y", [0, 0], [0, 1]),
        ("c", "z", [1, 0], [0, 0]),
        ("v", "d", [2, 2], [-2, 2]),
        ("d", "w", [2, 2], [0, 0]),
        ("e", "f", [1, 1], [0, 0]),
        ("e", "g", [1, 1], [2, 0]),
    ]
    db = pairs_of(rows, tmp_path)
    spread = {n: s for n, s in db.execute("SELECT comparisons, ambiguity FROM response")}
    assert spread[3] == pytest.approx(1 / 6)
    assert max(s for _, s in db.execute("SELECT comparisons, ambiguity FROM response")) == 1
    assert mark_ambiguous(db, 0.3, "both") == (2, 1.0)  # 7 x 0.3 = 2.1: both of d
    assert [pair.id for pair in clear_pairs(db)] == ["0", "1", "2", "5", "6"]
    db.execute("DROP TABLE ambiguous")
    assert mark_ambiguous(db, 0.99, "both") == (5, pytest.approx(1 / 6))  # e never varies
    assert [pair.id for pair in clear_pairs(db)] == ["5", "6"]
    db.execute("DROP TABLE ambiguous")
    assert mark_ambiguous(db, 0.99, "chosen")[0] == 4  # in row 3, d is the rejected one
    assert [pair.id for pair in clear_pairs(db)] == ["3", "5", "6"]


def test_fifteen_percent_of_many(tmp_path: Path) -> None:
    """40 comparisons, each response in two, more and more apart: the six last ones go."""
    rows = []
    for i in range(20):
        step = i % 5
        rows += [(f"c{i}", f"r{i}", [step - 2, 0], [0, 0]), (f"c{i}", f"q{i}", [2, 0], [0, 0])]
    db = pairs_of(rows, tmp_path)
    expected = sorted(range(40), key=lambda i: (-(((4 - (i // 2) % 5) / 4) ** 2), i))[:6]
    assert mark_ambiguous(db, 0.15, "both")[0] == 6
    assert sorted(s for (s,) in db.execute("SELECT seq - 1 FROM ambiguous")) == sorted(expected)


def test_triplets_go_both_ways_and_negligible_shifts_go(tmp_path: Path, marks: None) -> None:
    rows = [
        {"prompt": "How?", "chosen": marked("One", security=1, power=-0.5),
         "rejected": marked("Two", power=0.5), "id": "a"},
        {"prompt": "Why?", "chosen": marked("Three", power=0.5),
         "rejected": marked("Four", power=0.5), "id": "b"},
        {"prompt": "When?", "chosen": marked("Five", power=0.5),
         "rejected": marked("Six", power=0), "id": "c"},
    ]  # fmt: skip
    data = write_lines(tmp_path / "p.jsonl", rows)
    triplets = TripletConfig(min_shift=0.6, validation=0, test=0)
    config = BuildConfig(data=(f"jsonl:{data}",), out=tmp_path / "out", triplets=triplets)
    report = build(config)
    assert report["stages"]["dropped: negligible shift"] == 2  # equal, and 0.5 apart
    made = read_jsonl_strict(tmp_path / "out" / "triplets" / "train.jsonl", RewriteExample)
    assert [(t.id, t.response, t.reference) for t in made] == [
        ("a-pos", rows[0]["rejected"], rows[0]["chosen"]),
        ("a-neg", rows[0]["chosen"], rows[0]["rejected"]),
    ]
    positive, negative = made
    asked = {name: size for name, size in positive.shift.items() if size}
    assert asked == {"security": 1.0, "power": -1.0}
    assert {name: -size for name, size in negative.shift.items() if size} == asked
    assert positive.values == negative.target == levels_of(rows[0]["rejected"])
    assert positive.target == negative.values == levels_of(rows[0]["chosen"])
    less, more = "less focused on power", "more focused on security"
    assert positive.instruction.endswith(f" {less} and {more}")
    assert negative.instruction.endswith(" more focused on power and less focused on security")
    responses = read_jsonl_strict(tmp_path / "out" / "responses" / "train.jsonl", Dialogue)
    assert {r.response: r.values for r in responses} == {
        text: levels_of(text) for text in (rows[0]["chosen"], rows[0]["rejected"])
    }


def test_responses_are_given_the_mean_of_their_readings(tmp_path: Path) -> None:
    db = pairs_of([("c", "x", [2, 0], [0, 0]), ("c", "y", [1, 0], [0, 0])], tmp_path)
    (mean,) = db.execute("SELECT mean FROM response WHERE comparisons = 2").fetchone()
    assert np.frombuffer(mean, np.float32).tolist() == [1.5, 0.0]


def test_no_prompt_leaks_between_splits(tmp_path: Path) -> None:
    """Conversations share first prompts with other rows, word for word or nearly so."""
    table = tmp_path / "t.csv"
    write_alignment(table, 900, seed=3, rates=Rates(shared=0.3, further_turn=0.5))
    mapped = TripletConfig(validation=0.2, test=0.2)
    build(BuildConfig(data=(f"ca:{table}",), out=tmp_path / "out", triplets=mapped))
    where: dict[str, set[str]] = {}
    rows = Counter()
    for path in (tmp_path / "out" / "triplets").glob("*.jsonl"):
        for line in path.open(encoding="utf-8"):
            first = json.loads(line)["query"].removeprefix("Human: ").split("\n\nAssistant:")[0]
            where.setdefault(first, set()).add(path.stem)
            rows[path.stem] += 1
    assert set(rows) == {"train", "validation", "test"} and len(where) > 60
    assert all(len(splits) == 1 for splits in where.values())
    near = NearTexts(open_scratch(tmp_path / "n.sqlite"), "x", 0.85, chains=True)
    groups = {text: near.add(text) for text in where}
    by_group: dict[int, set[str]] = {}
    for text, member in groups.items():
        by_group.setdefault(near.leader(member), set()).update(where[text])
    assert all(len(splits) == 1 for splits in by_group.values())
    share = rows["train"] / rows.total()
    assert 0.45 < share < 0.75


def test_near_prompts_share_a_split_and_exact_ones_are_told_apart(
    tmp_path: Path, marks: None
) -> None:
    words = (
        "please tell me in some detail how one may best keep a small garden alive in a hot".split()
    )
    rows = []
    for i in range(60):
        prompt = " ".join([*words, "summer" if i % 2 else "summer now", f"{i // 2} times x y z"])
        rows.append(marked_pairs(60)[i] | {"prompt": prompt})
    data = write_lines(tmp_path / "p.jsonl", rows)

    def splits(near: float) -> set[str]:
        triplets = TripletConfig(near=near, validation=0.3, test=0.3)
        out = tmp_path / f"out-{near}"
        build(BuildConfig(data=(f"jsonl:{data}",), out=out, triplets=triplets))
        return {p.stem for p in (out / "triplets").glob("*.jsonl")}

    assert len(splits(0.5)) == 1  # one chain of near prompts
    assert splits(1.0) == {"train", "validation", "test"}


def jaccard(a: str, b: str) -> float:
    one, two = set(shingles(a.split())), set(shingles(b.split()))
    return len(one & two) / len(one | two)


def test_near_texts_follow_the_jaccard_of_word_triples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = [f"w{i}" for i in rng.integers(0, 400, 120)]
    db = open_scratch(tmp_path / "s.sqlite")
    wrong = 0
    for i in range(40):
        changed = list(base)
        for place in rng.choice(120, i % 20, replace=False):
            changed[place] = f"x{i}-{place}"
        near = NearTexts(db, f"n{i}", 0.7)
        similarity = jaccard(" ".join(base), " ".join(changed))
        same = near.add(" ".join(base)) == near.add(" ".join(changed).upper() + "!")
        wrong += abs(similarity - 0.7) > 0.15 and same != (similarity > 0.7)
    assert wrong == 0
    exact = NearTexts(db, "e", 1.0)
    assert exact.add("One, two three!") == exact.add("one two THREE") != exact.add("one two four")


def test_duplicates_exact_and_near_are_dropped_once(tmp_path: Path, marks: None) -> None:
    long = " ".join(f"word{i}" for i in range(80))
    one, two = marked(f"{long} first", power=1), marked(f"{long} {long[::-1]}", security=1)
    rows = [{"prompt": "How now?", "chosen": one, "rejected": two, "id": "a"}]
    rows.append(rows[0] | {"id": "b"})  # the same in every text
    rows.append(rows[0] | {"id": "c", "explanation": "why"})  # a comparison of its own
    rows.append(rows[0] | {"id": "d", "chosen": one.replace("word40", "other")})  # nearly the same
    rows.append(rows[0] | {"id": "e", "chosen": two, "rejected": one})  # the other way round
    rows.append(rows[0] | {"id": "f", "prompt": "And then?"})
    data = write_lines(tmp_path / "p.jsonl", rows)
    report = build(BuildConfig(data=(f"jsonl:{data}",), out=tmp_path / "out",
                               triplets=TripletConfig(test=0, validation=0)))  # fmt: skip
    stages = report["stages"]
    assert stages["comparisons the same as an earlier one"] == 1
    assert stages["different comparisons"] == 5
    assert stages["dropped: duplicate triplets"] == 6 and stages["triplets"] == 4
    made = read_jsonl_strict(tmp_path / "out" / "triplets" / "train.jsonl", RewriteExample)
    assert [t.id for t in made] == ["a-pos", "a-neg", "f-pos", "f-neg"]


def test_statistics_by_hand() -> None:
    """Two values: triplets (0, 0) -> (0.5, 0), (0, 0) -> (-1, 0.5), (1, 0) -> (-1, 0)."""
    from visa_core.value_space import Dimension, ValueSpace

    space = ValueSpace(name="two", dimensions=tuple(
        Dimension(name=n, title=n.title(), definition=n) for n in ("calm", "fair")))  # fmt: skip
    statistics = Statistics(space)
    for source, target in (((0, 0), (1, 0)), ((0, 0), (-2, 1)), ((2, 0), (-2, 0))):
        statistics.add(source, target)
    record = statistics.record()
    assert record["triplets"] == record["unique_vectors"] == record["unique_shifts"] == 3
    assert record["levels"]["calm"] == {"-1": 2, "-0.5": 0, "0": 0, "+0.5": 1, "+1": 0}
    assert record["levels"]["fair"] == {"-1": 0, "-0.5": 0, "0": 2, "+0.5": 1, "+1": 0}
    assert record["mean_level"] == {"calm": -0.5, "fair": round(0.5 / 3, 4)}
    assert {k: n for k, n in record["shifts"]["calm"].items() if n} == {"+0.5": 1, "-1": 1, "-2": 1}
    assert record["edits_by_size"] == {0.5: 2, 1.0: 1, 1.5: 0, 2.0: 1}
    assert (record["micro_edits"], record["large_edits"]) == (0.5, 0.25)
    assert record["untouched"] == {"calm": 0.0, "fair": round(2 / 3, 4)}
    assert record["untouched_mean"] == round(1 / 3, 4)
    assert record["triplets_by_touched_values"] == [0, 2, 1]


def test_levels_survive_packing() -> None:
    from visa_core.data.annotate.annotator import unpack_levels

    assert unpack_levels(pack_levels((-2, -1, 0, 1, 2))) == (-2, -1, 0, 1, 2)
