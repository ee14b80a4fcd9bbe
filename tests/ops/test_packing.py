"""Packing into token budgets: properties, agreement of both versions, optimality, errors."""

from __future__ import annotations

import dataclasses
import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visa_kernels import backend as backends
from visa_kernels import bin_of_sequences, pack_to_budget

CPU_MISSING = backends.why_no_extension()
BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(CPU_MISSING is not None, reason=str(CPU_MISSING))),
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@st.composite
def problems(draw: st.DrawFn, most: int = 60) -> tuple[list[int], int]:
    budget = draw(st.integers(1, 200))
    return draw(st.lists(st.integers(0, budget), max_size=most)), budget


def first_fit_by_hand(lengths: list[int], budget: int) -> list[int]:
    """First-fit decreasing with a plain scan over the open bins."""
    used: list[int] = []
    bins = [0] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [b for b, u in enumerate(used) if u + lengths[index] <= budget]
        if not fits:
            fits = [len(used)]
            used.append(0)
        used[fits[0]] += lengths[index]
        bins[index] = fits[0]
    return bins


def fewest_bins(lengths: list[int], budget: int) -> int:
    """The optimum by exhaustive search."""

    def search(rest: list[int], used: tuple[int, ...], best: int) -> int:
        if len(used) >= best or not rest:
            return min(best, len(used))
        for i, load in enumerate(used):
            if load + rest[0] <= budget and load not in used[:i]:
                filled = (*used[:i], load + rest[0], *used[i + 1 :])
                best = search(rest[1:], filled, best)
        return search(rest[1:], (*used, rest[0]), best)

    return search(sorted(lengths, reverse=True), (), len(lengths) + 1)


@each_backend
@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_every_index_once_and_no_bin_over_budget(backend: str, problem: tuple) -> None:
    lengths, budget = problem
    packed = pack_to_budget(lengths, budget, backend)
    assert sorted(i for part in packed for i in part) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in part) <= budget for part in packed)
    assert all(part and all(a < b for a, b in pairwise(part)) for part in packed)


@each_backend
@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_it_is_first_fit_decreasing(backend: str, problem: tuple) -> None:
    lengths, budget = problem
    assert bin_of_sequences(lengths, budget, backend).tolist() == first_fit_by_hand(lengths, budget)


@each_backend
@settings(max_examples=60, deadline=None)
@given(problem=problems(most=9))
def test_close_to_the_optimum(backend: str, problem: tuple) -> None:
    lengths, budget = problem
    optimum = fewest_bins(lengths, budget) if lengths else 0
    assert len(pack_to_budget(lengths, budget, backend)) <= 11 / 9 * optimum + 6 / 9


@pytest.mark.skipif(CPU_MISSING is not None, reason=str(CPU_MISSING))
def test_both_versions_agree_on_many_sequences() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2048, size=20_000)
    native, plain = (bin_of_sequences(lengths, 8192, name) for name in ("cpu", "reference"))
    np.testing.assert_array_equal(native, plain)


@each_backend
def test_kinds_of_input(backend: str) -> None:
    expected = [[0], [1, 2]]
    assert pack_to_budget([4, 3, 1], 4, backend) == expected
    assert pack_to_budget(torch.tensor([4, 3, 1]), 4, backend) == expected
    assert pack_to_budget(np.array([9, 4, 9, 3, 9, 1])[1::2], 4, backend) == expected
    assert pack_to_budget(torch.tensor([4, 3, 1], dtype=torch.int32), 4, backend) == expected
    assert pack_to_budget([], 4, backend) == []
    assert pack_to_budget([0, 0], 1, backend) == [[0, 1]]
    assert pack_to_budget([2**40, 2**40], 2**41, backend) == [[0, 1]]


@each_backend
@pytest.mark.parametrize(
    ("lengths", "budget", "message"),
    [
        ([3, 9, 2], 8, "sequence 1 has length 9, more than the budget of 8"),
        ([3, -1], 8, "sequence 1 has length -1; lengths cannot be negative"),
        ([3], 0, "budget must be at least 1 token, got 0"),
        ([1.5], 8, "whole numbers"),
        ([[1, 2]], 8, "one dimension"),
    ],
)
def test_bad_input(backend: str, lengths: list, budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_to_budget(lengths, budget, backend)


class TestChoice:
    """Which backend runs, here on the packing op, whose choice depends on the build."""

    @pytest.fixture(autouse=True)
    def forget(self) -> None:
        backends.register("pack_to_budget", *backends.registered()["pack_to_budget"])

    def test_the_choice_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="visa_kernels"):
            pack_to_budget([1], 1)
            pack_to_budget([1], 1)
        name = "reference" if CPU_MISSING else "cpu"
        assert [r.getMessage() for r in caplog.records if f"backend {name}" in r.getMessage()] == [
            r.getMessage() for r in caplog.records
        ]
        assert len(caplog.records) == 1

    def test_environment_chooses(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("VISA_BACKEND", "pack_to_budget=reference")
        with caplog.at_level(logging.INFO, logger="visa_kernels"):
            pack_to_budget([1], 1)
        assert "backend reference (asked for)" in caplog.text

    @pytest.mark.parametrize("value", ["fortran", "pack_to_budget=fortran"])
    def test_an_unknown_backend_is_an_error(
        self, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VISA_BACKEND", value)
        with pytest.raises(backends.BackendError, match="no backend 'fortran'; it has cpu, refer"):
            pack_to_budget([1], 1)

    def test_an_unknown_op_in_the_environment_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VISA_BACKEND", "pack_to_bugdet=cpu")
        with pytest.raises(backends.BackendError, match="pack_to_bugdet; the ops are"):
            pack_to_budget([1], 1)

    def test_a_backend_asked_for_and_missing_is_an_error_but_otherwise_passed_over(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        native, plain = backends.registered()["pack_to_budget"]
        broken = dataclasses.replace(native, why_not=lambda: "no g++ here")
        backends.register("pack_to_budget", broken, plain)
        try:
            with pytest.raises(backends.BackendError, match="cannot run: no g\\+\\+ here"):
                pack_to_budget([1], 1, backend="cpu")
            with caplog.at_level(logging.INFO, logger="visa_kernels"):
                assert pack_to_budget([1], 1) == [[0]]
            assert "cpu not used: no g++ here" in caplog.text
        finally:
            backends.register("pack_to_budget", native, plain)
