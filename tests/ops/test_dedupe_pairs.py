"""Deduplication of pairs: properties on texts and on token rows, unicode, errors."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.backends import cases
from visa_kernels import PackedRows, UniquePairs, dedupe_pairs

on_each = pytest.mark.parametrize(
    "backend", [pytest.param(case.values[0], marks=case.marks) for case in cases("dedupe_pairs")
                if case.values[1] == "cpu"],
)  # fmt: skip
few_texts = st.text(alphabet="aé\u4e2d\U0001f600 \x00", max_size=3)
texts = st.one_of(few_texts, st.text(max_size=80))
rows = st.lists(st.integers(0, 3), max_size=12)


def packed(rows: list[list[int]], dtype: torch.dtype = torch.int64) -> PackedRows:
    ids = torch.tensor([i for row in rows for i in row], dtype=dtype)
    ends = torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)
    return PackedRows(ids, ends)


def check(found: UniquePairs, pairs: list) -> None:
    """First occurrences in order, no two of them equal, and every pair sent to its equal."""
    first, inverse = found.first.tolist(), found.inverse.tolist()
    assert found.first.dtype == found.inverse.dtype == np.int64
    assert len(inverse) == len(pairs)
    assert [pairs[first[k]] for k in inverse] == pairs
    assert len({pairs[i] for i in first}) == len(first)
    assert first == sorted(first)
    assert all(pairs.index(pairs[i]) == i for i in first)


@on_each
@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(texts, texts), max_size=40))
def test_texts(backend: str, pairs: list[tuple[str, str]]) -> None:
    check(dedupe_pairs([a for a, _ in pairs], [b for _, b in pairs], backend), pairs)


@on_each
@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(rows, rows), max_size=30), wide=st.booleans())
def test_token_rows(backend: str, pairs: list, wide: bool) -> None:
    dtype = torch.int64 if wide else torch.int32
    found = dedupe_pairs(
        packed([a for a, _ in pairs], dtype), packed([b for _, b in pairs]), backend
    )
    check(found, [(tuple(a), tuple(b)) for a, b in pairs])


@on_each
def test_the_boundary_between_the_two_parts_counts(backend: str) -> None:
    assert dedupe_pairs(["ab", "a"], ["c", "bc"], backend).inverse.tolist() == [0, 1]
    left, right = packed([[1, 2], [1]]), packed([[3], [2, 3]])
    assert dedupe_pairs(left, right, backend).inverse.tolist() == [0, 1]


@on_each
def test_texts_that_look_alike_are_not_merged(backend: str) -> None:
    """Composed and decomposed, different widths of the same bytes, a lone surrogate, a null."""
    alike = ["\u00e9", "e\u0301", "e", "a\x00", "a", "\u6161", "aa", "\ud800", "", "\u00e9"]
    found = dedupe_pairs(alike, [""] * len(alike), backend)
    assert found.inverse.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]


@on_each
def test_long_texts_that_differ_in_one_character(backend: str) -> None:
    """Every position of a text of 100 characters; equal texts are different objects."""
    base = "x" * 100
    changed = [base[:i] + "y" + base[i + 1 :] for i in range(100)]
    found = dedupe_pairs([*changed, *[str(t + " ")[:-1] for t in changed]], ["h"] * 200, backend)
    assert found.first.tolist() == list(range(100))
    assert found.inverse.tolist() == [*range(100), *range(100)]


@on_each
def test_other_sequences_and_empty_ones(backend: str) -> None:
    assert dedupe_pairs(("a", "a"), np.array(["b", "b"]), backend).inverse.tolist() == [0, 0]
    for nothing in (([], []), (packed([]), packed([]))):
        found = dedupe_pairs(*nothing, backend)
        assert found.first.shape == found.inverse.shape == (0,)
    empty = packed([[], []])
    assert dedupe_pairs(empty, empty, backend).inverse.tolist() == [0, 0]
    strided = torch.tensor([1, 9, 1, 9])[::2], torch.tensor([0, 1, 2], dtype=torch.int32)
    assert dedupe_pairs(strided, strided, backend).inverse.tolist() == [0, 0]


def test_both_versions_agree_on_many_pairs() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word {i}" for i in range(300)])
    premises, hypotheses = (words[rng.integers(0, 300, 20_000)].tolist() for _ in range(2))
    plain = dedupe_pairs(premises, hypotheses, "reference")
    fast = dedupe_pairs(premises, hypotheses)
    for have, want in zip(fast, plain, strict=True):
        np.testing.assert_array_equal(have, want)


def test_a_list_may_be_emptied_by_another_thread_meanwhile() -> None:
    """The GIL is released, so the texts are held: nothing is read after it was freed."""
    stop = threading.Event()
    premises: list[str] = []

    def churn() -> None:
        while not stop.is_set():
            premises.clear()
            premises.extend(f"p{i % 50}" * 40 for i in range(2000))

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(60):
            with contextlib.suppress(ValueError):  # caught while it was being filled
                assert len(dedupe_pairs(premises, ["h"] * 2000).first) == 50
    finally:
        stop.set()
        worker.join()
    assert len(dedupe_pairs(premises, ["h"] * len(premises)).first) == 50


@on_each
def test_bad_input(backend: str) -> None:
    with pytest.raises(ValueError, match="2 premises for 1 hypotheses"):
        dedupe_pairs(["a", "b"], ["c"], backend)
    with pytest.raises(TypeError, match="hypotheses must be texts, but item 1 is of type int"):
        dedupe_pairs(["a", "b"], ["c", 4], backend)
    with pytest.raises(TypeError, match="premises must be texts, but item 0 is of type bytes"):
        dedupe_pairs([b"a"], ["c"], backend)
    with pytest.raises(ValueError, match="premises must be a sequence of texts, not one text"):
        dedupe_pairs("ab", ["a", "b"], backend)
    good = packed([[1], [2]])
    with pytest.raises(ValueError, match="must both be texts or both be packed rows"):
        dedupe_pairs(good, ["a", "b"], backend)
    with pytest.raises(ValueError, match="2 premises for 1 hypotheses"):
        dedupe_pairs(good, packed([[1]]), backend)
    ids = torch.tensor([1, 2, 3])
    for ends in ([0, 2], [1, 3], [], [0, 4]):
        with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 3"):
            dedupe_pairs(good, (ids, torch.tensor(ends, dtype=torch.int64)), backend)
    with pytest.raises(ValueError, match="premises: cu_seqlens falls after row 1"):
        dedupe_pairs((ids, torch.tensor([0, 3, 1, 3])), (ids, torch.arange(4)), backend)
    with pytest.raises(ValueError, match=r"ids must be whole numbers .* float32"):
        dedupe_pairs((ids.float(), torch.arange(4)), (ids, torch.arange(4)), backend)
