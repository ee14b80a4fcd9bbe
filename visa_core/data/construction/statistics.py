"""What a data set of triplets is like: vectors, absolute levels, shifts, and edits by size.

Everything is counted on the half-step grid as triplets pass by, so that memory does not grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from operator import sub
from pathlib import Path
from typing import Any

import numpy as np

from visa_core.data.annotate.annotator import Levels
from visa_core.data.schema import DataError, numbered_lines, parse_object
from visa_core.value_space import ValueSpace

LEVELS = [level / 2 for level in range(-2, 3)]
SHIFTS = [shift / 2 for shift in range(-4, 5)]


class Statistics:
    """Counts over triplets, by distinct vector: of all grids of levels and shifts few occur."""

    def __init__(self, space: ValueSpace) -> None:
        self.space = space
        self.targets: Counter[Levels] = Counter()
        self.shifts: Counter[Levels] = Counter()

    def add(self, source: Levels, target: Levels) -> None:
        """Count a triplet by its vectors in half steps, K entries each."""
        self.targets[target] += 1
        self.shifts[tuple(map(sub, target, source))] += 1

    def record(self) -> dict[str, Any]:
        """Plain data for JSON and the card.

        A target value of a triplet is one whose shift is not 0; edits are the shifts of those.
        micro: share of edits of 0.5; large: of 1.5 and more; untouched: by value, the share of
        triplets that leave it alone.
        """
        levels, shifts = (
            _counted(vectors, grid, self.space.size)
            for vectors, grid in ((self.targets, LEVELS), (self.shifts, SHIFTS))
        )
        touched = np.zeros(self.space.size + 1, np.int64)
        for shift, count in self.shifts.items():
            touched[sum(map(bool, shift))] += count
        triplets = self.targets.total()
        total = max(1, triplets)
        sizes = np.abs(np.array(SHIFTS))
        by_size = {size: int(shifts[:, sizes == size].sum()) for size in (0.5, 1.0, 1.5, 2.0)}
        edits = max(1, sum(by_size.values()))
        names = self.space.names
        means = levels @ np.array(LEVELS) / total
        untouched = shifts[:, len(SHIFTS) // 2] / total
        return {
            "triplets": triplets,
            "unique_vectors": len(self.targets),
            "unique_shifts": len(self.shifts),
            "levels": _by_value(names, LEVELS, levels),
            "mean_level": dict(zip(names, means.round(4).tolist(), strict=True)),
            "shifts": _by_value(names, SHIFTS, shifts),
            "edits_by_size": by_size,
            "micro_edits": round(by_size[0.5] / edits, 4),
            "large_edits": round((by_size[1.5] + by_size[2.0]) / edits, 4),
            "untouched": dict(zip(names, untouched.round(4).tolist(), strict=True)),
            "untouched_mean": round(float(untouched.mean()), 4) if triplets else 0.0,
            "triplets_by_touched_values": touched.tolist(),
        }


def _counted(vectors: Counter[Levels], grid: list[float], size: int) -> np.ndarray:
    """How often each value [K] is at each step of the grid."""
    counts = np.zeros((size, len(grid)), np.int64)
    for vector, count in vectors.items():
        counts[np.arange(size), np.array(vector) + len(grid) // 2] += count
    return counts


def _by_value(
    names: tuple[str, ...], grid: list[float], counts: np.ndarray
) -> dict[str, dict[str, int]]:
    return {
        name: {f"{level:+g}" if level else "0": int(n) for level, n in zip(grid, row, strict=True)}
        for name, row in zip(names, counts, strict=True)
    }


def statistics_of(folder: Path, space: ValueSpace) -> Statistics:
    """Statistics of the triplets in a folder's JSON lines. Raises DataError without any, or for a
    line that is none.
    """
    statistics = Statistics(space)
    files = sorted((folder / "triplets").glob("*.jsonl"))
    if not files:
        raise DataError(f"{folder}: has no triplets/*.jsonl; build it with visa data build first")
    for path in files:
        for line, text in numbered_lines(path, []):
            try:
                row = parse_object(text)
                statistics.add(_halves(row, "values", space), _halves(row, "target", space))
            except ValueError as error:
                raise DataError(f"{path}:{line}: {error}") from None
    return statistics


def _halves(row: Mapping[str, Any], field: str, space: ValueSpace) -> Levels:
    vector = row.get(field)
    if not isinstance(vector, dict):
        raise ValueError(f"field {field!r} must be an object of value names and numbers")
    doubled = [2 * entry for entry in space.vector(vector).tolist()]
    if any(entry != round(entry) for entry in doubled):
        raise ValueError(f"field {field!r} is not on the grid of half steps")
    return tuple(int(entry) for entry in doubled)
