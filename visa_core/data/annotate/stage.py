"""The annotate stage: comparisons in, annotated ones out in the same order, through the cache."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from visa_core.data.annotate.annotator import (
    Annotation,
    Annotator,
    Invalid,
    Keyed,
    RawAnswer,
    comparison_key,
)
from visa_core.data.annotate.cache import AnnotationCache
from visa_core.data.construction.comparison import Comparison, Intake, place

CHUNK = 1024
"""Comparisons that are in memory, looked up and annotated together."""
PAID_CHUNK = 8 * CHUNK
"""The same for annotators that wait for answers: the last ones of a chunk keep few of them busy."""

FROM_CACHE = "answers from the cache"
SHARED = "answers shared with an equal comparison"
ASKED = "answers asked for"
ANSWER_COUNTS = (FROM_CACHE, SHARED, ASKED)
"""Counts of a run rather than of its data."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """A comparison, the key of its texts, and its levels."""

    key: bytes
    comparison: Comparison
    annotation: Annotation


def annotate_stream(
    comparisons: Iterable[Comparison],
    annotator: Annotator,
    cache: AnnotationCache,
    intake: Intake,
    chunk: int | None = None,
    progress: Callable[[int], object] = lambda settled: None,
) -> Iterator[Annotated]:
    """Annotated comparisons in order; those without an annotation are set aside and counted.

    What the cache knows is not asked for again, and what occurs twice is asked for once. `progress`
    is told how many more are settled, as answers come in. Raises EndpointError when the annotator
    cannot go on; what it had answered is in the cache.
    """

    def record(
        key: bytes, outcome: Annotation | Invalid | None, raw: RawAnswer | None = None
    ) -> None:
        cache.record(key, outcome, raw)
        progress(outcome is not None)

    chunk = chunk or (PAID_CHUNK if annotator.paid else CHUNK)
    source = iter(comparisons)
    while part := list(islice(source, chunk)):
        keyed = [(comparison_key(annotator.name, c), c) for c in part]
        outcomes = cache.find([key for key, _ in keyed])
        missing = _missing(keyed, outcomes, intake)
        progress(len(keyed) - len(missing))
        if missing:
            try:
                annotator.annotate(missing.values(), record)
            finally:
                cache.commit()
            outcomes |= cache.find(list(missing))
        for key, comparison in keyed:
            outcome = outcomes[key]
            if isinstance(outcome, Invalid):
                _set_aside(comparison, outcome, intake)
            else:
                intake.counts["comparisons annotated"] += 1
                yield Annotated(key, comparison, outcome)


def _missing(keyed: Sequence[Keyed], known: Container[bytes], intake: Intake) -> dict[bytes, Keyed]:
    """What is to be asked for, each key once; how all keys get their outcome is counted."""
    missing: dict[bytes, Keyed] = {}
    for item in keyed:
        if item[0] in known:
            intake.counts[FROM_CACHE] += 1
        elif item[0] in missing:
            intake.counts[SHARED] += 1
        else:
            missing[item[0]] = item
    intake.counts[ASKED] += len(missing)
    return missing


def _set_aside(comparison: Comparison, outcome: Invalid, intake: Intake) -> None:
    kind = "without an answer" if outcome.failed else "with invalid answers"
    rejected = place(comparison.path, comparison.line, f"{comparison.id}: {outcome.reason}")
    intake.reject(f"comparisons {kind}", rejected)
