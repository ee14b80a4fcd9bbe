"""Confidence intervals of shares and win rates."""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]


def wilson(mean: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a mean of n independent numbers in [0, 1] (Wilson 1927).

    Exactly Wilson's for zeros and ones. Numbers in between, such as a tie's 0.5, vary less than the
    formula's mean * (1 - mean), so that the interval is then on the wide side. It has a width
    even where all n agree. Raises ValueError for n < 1 and for a mean or level out of range.
    """
    if n < 1:
        raise ValueError(f"an interval needs at least one observation, got {n}")
    if not 0 <= mean <= 1 or not 0 < level < 1:
        raise ValueError(f"mean must be in [0, 1] and level in (0, 1), got {mean} and {level}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(values: list[float], level: float = 0.95) -> dict[str, object]:
    """Mean of numbers in [0, 1], its interval and n; mean and interval are None without any."""
    if not values:
        return {"mean": None, "interval": None, "n": 0}
    mean = sum(values) / len(values)
    return {"mean": mean, "interval": list(wilson(mean, len(values), level)), "n": len(values)}


def shown(share_record: dict[str, object], digits: int = 3) -> str:
    """`share`'s record as text: "0.570 [0.532, 0.607], n = 668"; "-" without observations."""
    mean, interval = share_record["mean"], share_record["interval"]
    if mean is None:
        return "-"
    low, high = interval  # type: ignore[misc]
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}], n = {share_record['n']}"
