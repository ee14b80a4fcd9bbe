"""Agreement between raters: Krippendorff's alpha, by NLTK."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, Literal

Label = tuple[str, str, Hashable]
"""(rater, unit, label)."""


def krippendorff_alpha(
    labels: Sequence[Label], level: Literal["nominal", "interval"]
) -> dict[str, Any]:
    """Alpha over the units that at least two raters labelled, with their number; raters may have
    left units out. Alpha is None where there is no such unit, and where all labels are one, so that
    chance explains everything.

    Raises ValueError where NLTK is not installed.
    """
    raters: dict[str, set[str]] = defaultdict(set)
    for rater, unit, _ in labels:
        raters[unit].add(rater)
    shared = [label for label in labels if len(raters[label[1]]) > 1]
    units = sum(len(who) > 1 for who in raters.values())
    if not shared or len({label for _, _, label in shared}) == 1:
        return {"alpha": None, "units": units}
    try:
        from nltk.metrics.agreement import AnnotationTask
        from nltk.metrics.distance import binary_distance, interval_distance
    except ModuleNotFoundError as error:
        raise ValueError(
            "agreement between raters needs the package nltk: pip install 'visa-core[human]'"
        ) from error
    distance = binary_distance if level == "nominal" else interval_distance
    return {"alpha": float(AnnotationTask(shared, distance=distance).alpha()), "units": units}
