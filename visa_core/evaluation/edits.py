"""How much of a text a rewrite changed: beside consistency, so that copying shows."""

from __future__ import annotations

import numpy as np


def edit_share(source: str, rewrite: str) -> float:
    """Share of words changed, in [0, 1]: the least number of words to insert, delete or replace
    (Levenshtein 1966), by the length of the longer text. 0 is a copy; two empty texts are one.
    """
    a, b = source.split(), rewrite.split()
    if not a or not b:
        return float(bool(a) or bool(b))
    numbers = {word: i for i, word in enumerate(dict.fromkeys(a + b))}
    ids = np.array([numbers[word] for word in b])
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for word in a:
        replaced = row[:-1] + (ids != numbers[word])
        best = np.concatenate([row[:1] + 1, np.minimum(replaced, row[1:] + 1)])
        row = np.minimum.accumulate(best - steps) + steps
    return float(row[-1]) / max(len(a), len(b))
