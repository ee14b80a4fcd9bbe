"""How well a detector does: the ValueEval'23 measure over categories, and sign and direction of
vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visa_core.data.sources import load_labelled
from visa_core.models.detector import Detector
from visa_core.values import VALUEEVAL20, cosine


def precision_recall(
    predicted: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Precision and recall of each category, [C] float64, from boolean [n, C].

    A category never predicted has precision 0, one that never occurs has recall 0.
    """
    hits = (predicted & truth).sum(0).double()
    precision = hits / predicted.sum(0).clamp(min=1)
    recall = hits / truth.sum(0).clamp(min=1)
    return precision, recall


def harmonic_mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """2ab / (a + b), and 0 where both are 0."""
    return 2 * a * b / (a + b).clamp(min=1e-12)


def macro_f1(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """F1 of the macro-averaged precision and the macro-averaged recall, from boolean [n, C].

    This is the measure of the ValueEval'23 shared task. It is not the mean of the categories' F1.
    """
    precision, recall = precision_recall(predicted, truth)
    return float(harmonic_mean(precision.mean(), recall.mean()))


def per_category_f1(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """F1 of each category, [C] float64, from boolean [n, C]."""
    return harmonic_mean(*precision_recall(predicted, truth))


def best_threshold(probabilities: torch.Tensor, truth: torch.Tensor) -> float:
    """The threshold in 0.05, 0.06 ... 0.60 with the best macro F1; [n, C] and boolean [n, C].

    Neighbours are averaged first: on a few hundred rows a single step's peak is mostly luck.
    """
    grid = [step / 100 for step in range(2, 64)]
    scores = torch.tensor([macro_f1(probabilities >= level, truth) for level in grid])
    smooth = scores.unfold(0, 7, 1).mean(1)
    return grid[int(smooth.argmax()) + 3]


def sign_accuracy(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of the nonzero entries of `truth` [n, K] whose sign is predicted; NaN if there are
    none.
    """
    labelled = truth != 0
    if not labelled.any():
        return float("nan")
    return float((predicted.sign() == truth.sign())[labelled].double().mean())


def evaluate_detector(
    model: Detector, specs: Sequence[str], batch_size: int = 64
) -> dict[str, object]:
    """Scores of a detector on the data of `specs`, ready for JSON.

    n, sign_accuracy and cosine are over rows with a value vector; macro_f1, per_category_f1 and
    all_ones_macro_f1 (every category predicted for every row) over rows with the twenty categories.
    What the data or the model does not have is None. Raises DataError for data that cannot be read,
    ValueError when none of it is labelled.
    """
    rows = load_labelled(specs, model.space)
    labelled = [
        row for row in rows if row.dialogue.values is not None or row.categories is not None
    ]
    if not labelled:
        raise ValueError(f"no labels to evaluate against in {', '.join(specs)}")
    result: dict[str, object] = {"n": len(labelled), "not_labelled": len(rows) - len(labelled)}
    with_vector = [row for row in labelled if row.dialogue.values is not None]
    with_categories = [row for row in labelled if row.categories is not None]
    result |= _vector_scores(model, with_vector, batch_size)
    result |= _category_scores(model, with_categories, batch_size)
    return result


def _texts(rows: Sequence) -> tuple[list[str], list[str]]:
    return [row.dialogue.query for row in rows], [row.dialogue.response for row in rows]


def _vector_scores(model: Detector, rows: Sequence, batch_size: int) -> dict[str, object]:
    if not rows:
        return {"sign_accuracy": None, "cosine": None, "l2": None}
    predicted = model.predict(*_texts(rows), batch_size=batch_size)
    truth, _ = model.space.matrix([row.dialogue.values for row in rows])
    sign = sign_accuracy(predicted, truth)
    return {
        "sign_accuracy": None if sign != sign else sign,
        "cosine": float(cosine(predicted.double(), truth.double()).mean()),
        "l2": float((predicted - truth).double().norm(dim=1).mean()),
    }


def _category_scores(model: Detector, rows: Sequence, batch_size: int) -> dict[str, object]:
    names = ("macro_f1", "per_category_f1", "all_ones_macro_f1", "threshold")
    if not rows:
        return dict.fromkeys(names)
    truth = torch.tensor([row.categories for row in rows]).bool()
    all_ones = macro_f1(torch.ones_like(truth), truth)
    if model.category_head is None:
        return dict.fromkeys(names) | {"all_ones_macro_f1": all_ones}
    threshold = model.config.category_threshold
    predicted = model.predict_categories(*_texts(rows), batch_size=batch_size) >= threshold
    each = per_category_f1(predicted, truth).tolist()
    values = (macro_f1(predicted, truth), dict(zip(VALUEEVAL20.names, each, strict=True)))
    return dict(zip(names, (*values, all_ones, threshold), strict=True))
