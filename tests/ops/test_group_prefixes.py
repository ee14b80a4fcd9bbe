"""Prefix grouping: properties, packed lengths, token types, errors."""

from __future__ import annotations

import os.path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.backends import cases
from visa_kernels import PrefixGroups, group_prefixes, pack_to_budget

on_each = pytest.mark.parametrize(
    "backend", [pytest.param(case.values[0], marks=case.marks) for case in cases("group_prefixes")
                if case.values[1] == "cpu"],
)  # fmt: skip
rows_of_ids = st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=25)


def run(rows: list[list[int]], prefix: int | list[int], backend: str, dtype=torch.int64):
    ids = torch.tensor([i for row in rows for i in row], dtype=dtype)
    ends = torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)
    lengths = prefix if isinstance(prefix, int) else torch.tensor(prefix, dtype=torch.int64)
    return group_prefixes(ids, ends, lengths, backend)


def check(found: PrefixGroups, rows: list[list[int]], prefixes: list[int]) -> None:
    """Written out from the docstring."""
    heads = [tuple(row[:n]) for row, n in zip(rows, prefixes, strict=True)]
    kinds = list(dict.fromkeys(heads))
    assert found.group_ids.tolist() == [kinds.index(head) for head in heads]
    starts = found.cu_groups.tolist()
    parts = [found.order[a:b].tolist() for a, b in zip(starts, starts[1:], strict=False)]
    members = [[i for i, head in enumerate(heads) if head == kind] for kind in kinds]
    assert parts == members
    assert found.prefix.tolist() == [len(kind) for kind in kinds]
    common = [len(os.path.commonprefix([rows[i] for i in part])) for part in members]
    assert found.shared.tolist() == common
    stored = [
        len(kind) + sum(len(rows[i]) - len(kind) for i in part)
        for kind, part in zip(kinds, members, strict=True)
    ]
    assert found.packed_lengths().tolist() == stored


@on_each
@settings(max_examples=150, deadline=None)
@given(rows=rows_of_ids, prefix=st.integers(0, 6))
def test_one_prefix_length(backend: str, rows: list[list[int]], prefix: int) -> None:
    found = run(rows, prefix, backend)
    check(found, rows, [min(prefix, len(row)) for row in rows])


@on_each
@settings(max_examples=150, deadline=None)
@given(data=st.data(), wide=st.booleans())
def test_a_prefix_length_for_each_row(backend: str, data: st.DataObject, wide: bool) -> None:
    rows = data.draw(rows_of_ids)
    prefixes = [data.draw(st.integers(0, len(row))) for row in rows]
    found = run(rows, prefixes, backend, torch.int64 if wide else torch.int32)
    check(found, rows, prefixes)


@on_each
def test_long_prompts_and_narrow_ids(backend: str) -> None:
    """Prompts of 300 ids that differ in their last one; completions that share a beginning."""
    prompt = list(range(100)) * 3
    rows = [[*prompt, 7, 8], [*prompt[:-1], 5, 7, 8], [*prompt, 7, 9, 9], [*prompt, 7]]
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        found = run(rows, [300] * 4, backend, dtype)
        check(found, rows, [300] * 4)
        assert found.shared.tolist() == [301, 302]


@on_each
def test_groups_go_into_bins_with_their_prompt_counted_once(backend: str) -> None:
    rows = [[1] * 10 + [2] * 5, [1] * 10 + [3] * 4, [9] * 8]
    found = run(rows, [10, 10, 8], backend)
    assert found.packed_lengths().tolist() == [19, 8]
    assert pack_to_budget(found.packed_lengths(), 27) == [[0, 1]]


def test_both_versions_agree_on_many_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, size=9_000)
    ids = rng.integers(0, 3, size=lengths.sum()).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    plain = group_prefixes(ids, ends, 5, "reference")
    fast = group_prefixes(ids, ends, 5)
    for name in ("group_ids", "order", "cu_groups", "prefix", "shared"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name))


@on_each
def test_nothing_and_bad_input(backend: str) -> None:
    none = run([], 4, backend)
    assert none.group_ids.shape == none.order.shape == none.shared.shape == (0,)
    assert none.cu_groups.tolist() == [0] and none.packed_lengths().shape == (0,)
    with pytest.raises(ValueError, match="row 1 has 1 ids and a prefix of 2"):
        run([[1, 2], [1]], [2, 2], backend)
    with pytest.raises(ValueError, match="row 0 has 2 ids and a prefix of -1"):
        run([[1, 2], [1]], [-1, 1], backend)
    with pytest.raises(ValueError, match="cannot be negative, got -3"):
        run([[1, 2]], -3, backend)
    with pytest.raises(ValueError, match=r"prefix_lengths must be \[2\], got \(1,\)"):
        run([[1, 2], [1]], [1], backend)
    with pytest.raises(ValueError, match="rows: cu_seqlens must rise from 0 to 3"):
        group_prefixes(torch.arange(3), torch.tensor([0, 2]), 1, backend)
    with pytest.raises(ValueError, match="rows: ids must be whole numbers"):
        group_prefixes(torch.zeros(3), torch.tensor([0, 3]), 1, backend)
