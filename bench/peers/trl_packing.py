"""TRL's packing: best fit decreasing over a table of token lists, which it rearranges as well."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers import installed
from bench.registry import Inputs
from visa_kernels import bin_of_sequences

MORE_BINS = 1.02
"""Best fit may need a few bins more or fewer than first fit."""


def why_not() -> str | None:
    """None where TRL's packing can be imported."""
    return installed.why_not(installed.TRL, "trl.data_utils", "pyarrow")


def as_table(inputs: Inputs) -> Inputs:
    """Token lists in which every token of a sequence is the sequence's number."""
    import pyarrow

    lengths = inputs["lengths"]
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    column = pyarrow.ListArray.from_arrays(ends, tokens)
    return {"table": pyarrow.table({"input_ids": column}), "budget": inputs["budget"]}


def pack(inputs: Inputs) -> Any:
    """The table with a row per bin."""
    from trl.data_utils import _pack_bfd

    return _pack_bfd(inputs["table"], inputs["budget"])


def problem(table: Any, inputs: Inputs) -> str | None:
    """What is wrong with the bins: one too full, a sequence lost or torn, or far too many."""
    bins = [np.asarray(row.values) for row in table["input_ids"]]
    if max(len(row) for row in bins) > inputs["budget"]:
        return "a bin holds more than the budget"
    found = np.concatenate([np.unique(row, return_counts=True) for row in bins], axis=1)
    order = np.argsort(found[0])
    whole = np.flatnonzero(inputs["lengths"])
    if not np.array_equal(found[0][order], whole):
        return "a sequence is missing or in two bins"
    if not np.array_equal(found[1][order], inputs["lengths"][whole]):
        return "a sequence has lost tokens"
    ours = 1 + int(bin_of_sequences(inputs["lengths"], inputs["budget"]).max())
    if len(bins) > MORE_BINS * ours:
        return f"{len(bins)} bins where first fit decreasing needs {ours}"
    return None
