"""The annotate stage on the machines of a Ray cluster: same annotator, same keys, same cache.

Only what the cache lacks travels. Workers send their records back, and this process alone writes
the cache; the build then goes on from it as it does after a restart, so that results are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from visa_core.data.annotate.annotator import (
    Annotation,
    Annotator,
    Invalid,
    Keyed,
    RawAnswer,
    comparison_key,
)
from visa_core.data.annotate.cache import AnnotationCache
from visa_core.data.annotate.make import make_annotator
from visa_core.data.annotate.stage import CHUNK
from visa_core.data.construction.comparison import Comparison
from visa_core.data.construction.config import AnnotatorConfig
from visa_core.data.schema import DataError
from visa_core.endpoints import Account, EndpointError
from visa_core.value_space import ValueSpace

WINDOW = 16 * CHUNK
"""Comparisons that are in Ray's hands at once."""
BATCH = 64
"""Comparisons of one call of a worker; a killed run loses at most the calls under way."""


def fill_cache(
    comparisons: Iterable[Comparison],
    config: AnnotatorConfig,
    space: ValueSpace,
    annotator: Annotator,
    cache: AnnotationCache,
) -> int:
    """Have what the cache lacks annotated by Ray's workers; returns how many comparisons.

    annotator: this process's own, for the keys and the account. Raises DataError without ray and
    EndpointError when a worker's annotator cannot go on; what was answered by then is kept.
    """
    ray = _ray()
    source = _missing(comparisons, annotator.name, cache)
    asked = 0
    while window := list(islice(source, WINDOW)):
        asked += len(window)
        # As many blocks as workers can share, made here: a task that deals them out would wait for
        # a processor that the workers hold.
        blocks = min(len(window), max(config.actors, len(window) // BATCH))
        rows = ray.data.from_items(
            [{"key": key, **asdict(c)} for key, c in window], override_num_blocks=blocks
        )
        answered = rows.map_batches(
            Worker,
            fn_constructor_args=(config, space),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=config.actors, initial_size=config.actors
            ),
        )
        try:
            for row in answered.iter_rows():
                _keep(row, annotator, cache)
        except ray.exceptions.RayError as error:
            raise EndpointError(f"a worker of Ray stopped: {_cause(error)}") from error
        finally:
            cache.commit()
    return asked


def _missing(
    comparisons: Iterable[Comparison], name: str, cache: AnnotationCache
) -> Iterator[Keyed]:
    """What the cache lacks, equal comparisons of a chunk once; what failed in this run is not asked
    again.
    """
    source = iter(comparisons)
    while part := list(islice(source, CHUNK)):
        keyed = {comparison_key(name, comparison): comparison for comparison in part}
        known = cache.find(list(keyed))
        yield from ((key, c) for key, c in keyed.items() if key not in known)


class Worker:
    """An annotator in a process of its own, on whichever machine."""

    def __init__(self, config: AnnotatorConfig, space: ValueSpace) -> None:
        self.annotator = make_annotator(config, space)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Records of a batch as rows of key and JSON; the last row's has the account."""
        keys: list[bytes] = []
        records: list[str] = []

        def record(
            key: bytes, outcome: Annotation | Invalid | None, raw: RawAnswer | None = None
        ) -> None:
            keys.append(key)
            records.append(json.dumps(_packed(outcome) | {"raw": raw and asdict(raw)}))

        names = [name for name in batch if name != "key"]
        columns = [batch[name].tolist() for name in names]
        comparisons = [
            Comparison(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)
        ]
        stopped = ""
        try:
            self.annotator.annotate(zip(batch["key"].tolist(), comparisons, strict=True), record)
        except EndpointError as error:
            stopped = str(error)
        keys.append(b"")
        records.append(json.dumps({"account": self._account(), "stopped": stopped}))
        return {"key": keys, "record": records}

    def _account(self) -> dict[str, Any] | None:
        """The account since the last batch."""
        chat = getattr(self.annotator, "chat", None)
        if chat is None:
            return None
        record = chat.account.record()
        chat.account = Account(
            input_price=chat.account.input_price, output_price=chat.account.output_price
        )
        return record


def _packed(outcome: Annotation | Invalid | None) -> dict[str, Any]:
    if outcome is None:
        return {}
    return {"annotation" if isinstance(outcome, Annotation) else "invalid": asdict(outcome)}


def _keep(row: Mapping[str, Any], annotator: Annotator, cache: AnnotationCache) -> None:
    record = json.loads(row["record"])
    if not row["key"]:
        if record["account"]:
            annotator.chat.account.add(record["account"])  # type: ignore[attr-defined]
        if record["stopped"]:
            raise EndpointError(record["stopped"])
        return
    outcome: Annotation | Invalid | None = None
    if "annotation" in record:
        sides = record["annotation"]
        outcome = Annotation(chosen=tuple(sides["chosen"]), rejected=tuple(sides["rejected"]))
    elif "invalid" in record:
        outcome = Invalid(**record["invalid"])
    raw = RawAnswer(**record["raw"]) if record["raw"] else None
    cache.record(row["key"], outcome, raw)


def _cause(error: BaseException) -> str:
    """The innermost reason; Ray wraps what a worker raised."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError:
        raise DataError(
            "annotator engine 'ray' needs the package ray: pip install 'visa-core[ray]'"
        ) from None
    return ray
