"""Readers of entailment pairs: jsonl:PATH and embedded[:ROWS[,SEED]]."""

from __future__ import annotations

from collections.abc import Sequence

from visa_core.data.schema import DataError, describe_rejected, read_jsonl, report_rejected
from visa_core.data.sources import DataSpec, parse_spec, rows_and_seed
from visa_core.types import NLIPair

EMBEDDED_PAIRS = 12_000


def load_nli_pairs(specs: Sequence[str]) -> list[NLIPair]:
    """All pairs of the specifications, in order; what was set aside is reported in the log.

    Raises DataError for kinds of data that hold no pairs and for files without a usable one.
    """
    pairs = [pair for text in specs for pair in _load(parse_spec(text))]
    if not pairs:
        raise DataError("no data: give --data at least once")
    return pairs


def _load(spec: DataSpec) -> list[NLIPair]:
    if spec.kind == "embedded":
        from visa_core.data import embedded

        return embedded.nli_pairs(*rows_and_seed(spec, EMBEDDED_PAIRS))
    if spec.kind != "jsonl":
        raise DataError(
            f"--data {spec.text!r} holds no entailment pairs; use jsonl:PATH or embedded"
        )
    pairs, rejected = read_jsonl(spec.arguments[0], NLIPair)
    report_rejected(rejected, len(pairs) + len(rejected))
    if not pairs:
        first = f"; the first: {describe_rejected(rejected[0])}" if rejected else ""
        raise DataError(
            f"--data {spec.text!r} has no usable record ({len(rejected)} set aside{first})"
        )
    return pairs
