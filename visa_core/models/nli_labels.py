"""Which output of a sequence classifier means entailment, neutral and contradiction.

Published NLI models order their labels in at least three incompatible ways, so the order is read
from `id2label` and a model that does not say it is refused: a wrong guess would silently reward
contradictions.
"""

from __future__ import annotations

from collections.abc import Mapping

NLI_LABELS = ("entailment", "neutral", "contradiction")
"""Order of every probability triple in this package."""

_SPELLINGS = {
    "entailment": ("entailment", "entail", "entails", "entailed", "implication"),
    "neutral": ("neutral", "neutrality", "unknown"),
    "contradiction": (
        "contradiction",
        "contradict",
        "contradicts",
        "contradicted",
        "contradictory",
    ),
    "not_entailment": ("notentailment", "nonentailment", "notentailed", "noentailment"),
}
_CANONICAL = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}


class UnclearLabelsError(ValueError):
    """The labels of a classifier do not say which is which; the message names the folder and the
    labels.
    """


def canonical_label(label: str) -> str | None:
    """entailment, neutral, contradiction or not_entailment for any usual spelling and case; None
    when unclear.
    """
    return _CANONICAL.get("".join(c for c in str(label).lower() if c.isalpha()))


def label_order(
    id2label: Mapping[int, str] | None, folder: str
) -> tuple[int | None, int, int | None]:
    """Output indices of (entailment, neutral, contradiction).

    A two-label model (entailment, not_entailment) is accepted: not_entailment counts as neutral and
    contradiction has no output (None, probability 0). Raises UnclearLabelsError for anything else.
    """
    labels = {int(index): str(label) for index, label in (id2label or {}).items()}
    found = {canonical_label(label): index for index, label in labels.items()}
    complete = len(found) == len(labels) and None not in found
    if complete and set(found) == set(NLI_LABELS):
        return found["entailment"], found["neutral"], found["contradiction"]
    if complete and set(found) == {"entailment", "not_entailment"}:
        return found["entailment"], found["not_entailment"], None
    listed = ", ".join(f"{index}: {label!r}" for index, label in sorted(labels.items())) or "none"
    raise UnclearLabelsError(
        f"{folder}: cannot tell which output means entailment, neutral and contradiction from its "
        f"labels ({listed}). Write the true names into id2label and label2id of its config.json, "
        'in the order the model was trained with (for example {"0": "entailment", "1": "neutral", '
        '"2": "contradiction"}).'
    )
