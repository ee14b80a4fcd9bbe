"""Triplets of a comparison: rewriting towards the chosen response's values, and away from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from visa_core.data.annotate.annotator import Levels
from visa_core.data.construction.scratch import Pair
from visa_core.data.rewriting import describe_shift
from visa_core.value_space import ValueSpace

OPENERS = ("make it", "rewrite it so that it is", "the answer should be", "I would like it")
"""How instructions begin; which one is a function of the triplet's id."""


@dataclass(frozen=True, slots=True)
class Triplet:
    """A source response, its values, the wanted ones, and a response that has them.

    Levels are in half steps; `source_hash` and `rewrite_hash` name the two responses.
    """

    id: str
    prompt: str
    source: str
    rewrite: str
    source_levels: Levels
    target_levels: Levels
    source_hash: int
    rewrite_hash: int

    @property
    def shift(self) -> Levels:
        """Target less source, in half steps, each in -4 ... 4."""
        pairs = zip(self.source_levels, self.target_levels, strict=True)
        return tuple(target - source for source, target in pairs)


def shift_size(pair: Pair) -> float:
    """L2 distance of both vectors on the scale -1 ... 1."""
    return math.dist(pair.chosen_levels, pair.rejected_levels) / 2


def triplets_of(pair: Pair) -> Iterator[Triplet]:
    """Positive rewriting (rejected -> chosen) and negative rewriting (chosen -> rejected)."""
    chosen = pair.chosen, pair.chosen_levels, pair.chosen_hash
    rejected = pair.rejected, pair.rejected_levels, pair.rejected_hash
    for name, source, target in (("pos", rejected, chosen), ("neg", chosen, rejected)):
        yield Triplet(
            id=f"{pair.id}-{name}",
            prompt=pair.prompt,
            source=source[0],
            rewrite=target[0],
            source_levels=source[1],
            target_levels=target[1],
            source_hash=source[2],
            rewrite_hash=target[2],
        )


def instruction(shift: dict[str, float], space: ValueSpace, name: str) -> str:
    """A shift in words; a record's name decides how the sentence begins."""
    text = describe_shift(shift, space).removeprefix("make it ")
    opener = OPENERS[hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % len(OPENERS)]
    return f"{opener} {text}"


def triplet_row(triplet: Triplet, space: ValueSpace) -> dict[str, object]:
    """The record as files hold it: a RewriteExample with every value named in its vectors, since
    readers of columns want the same keys in each row.
    """
    shift = named(triplet.shift, space)
    asked = {name: size for name, size in shift.items() if size}
    return {
        "id": triplet.id,
        "query": triplet.prompt,
        "response": triplet.source,
        "instruction": instruction(asked, space, triplet.id),
        "values": named(triplet.source_levels, space),
        "shift": shift,
        "target": named(triplet.target_levels, space),
        "reference": triplet.rewrite,
    }


def named(levels: Levels, space: ValueSpace) -> dict[str, float]:
    """Levels in half steps as a mapping of all value names."""
    return {name: level / 2 for name, level in zip(space.names, levels, strict=True)}


def split_of(root: str, validation: float, test: float, seed: int) -> str:
    """train, validation or test, by hash of a prompt group's name."""
    digest = hashlib.blake2b(f"{seed}/{root}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"
