"""The annotator interface: keyed comparisons in, outcomes recorded one by one as they are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from visa_core.data.construction.comparison import Comparison

Levels = tuple[int, ...]
"""K levels in half steps, each in -2 ... 2: the Likert grid -1 ... 1 times two."""

Keyed = tuple[bytes, Comparison]


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """Levels of the chosen and of the rejected response."""

    chosen: Levels
    rejected: Levels


@dataclass(frozen=True, kw_only=True, slots=True)
class Invalid:
    """No annotation: the answers stayed invalid, or (`failed`) none came and a later run asks
    again.
    """

    reason: str
    failed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RawAnswer:
    """One reply of a model as it came, for the raw log; `invalid` is why it was no annotation."""

    text: str = ""
    error: str = ""
    invalid: str = ""
    attempt: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Record(Protocol):
    """Takes what is known of a key at once: a reply, or an outcome, or both."""

    def __call__(
        self, key: bytes, outcome: Annotation | Invalid | None, raw: RawAnswer | None = None
    ) -> None: ...


class Annotator(Protocol):
    """Annotates comparisons."""

    @property
    def name(self) -> str:
        """All that its answers depend on, for cache keys: model, prompt, values, settings."""
        ...

    @property
    def paid(self) -> bool:
        """Whether an answer is worth writing to disk at once."""
        ...

    def annotate(self, items: Iterable[Keyed], record: Record) -> None:
        """Record an outcome for each item, in any order. Raises EndpointError when none can be
        had; what was recorded until then holds.
        """
        ...


def comparison_key(annotator: str, comparison: Comparison) -> bytes:
    """16 bytes of what an annotation depends on: the annotator and the four texts, nothing else."""
    digest = hashlib.blake2b(annotator.encode(), digest_size=16)
    texts = (comparison.prompt, comparison.chosen, comparison.rejected, comparison.explanation)
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()


def pack_levels(levels: Levels) -> bytes:
    """K levels as K bytes, 0 ... 4."""
    return bytes(level + 2 for level in levels)


def unpack_levels(packed: bytes) -> Levels:
    """Inverse of `pack_levels`."""
    return tuple(byte - 2 for byte in packed)
