"""Train the Detector: value vectors by regression, the twenty ValueEval'23 categories by
classification.

Both kinds of data may be given together: two heads then share one backbone, and each row trains the
head that its label belongs to.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from visa_core.config import DetectorConfig, with_recipe
from visa_core.data.sources import LabelledDialogue, load_labelled
from visa_core.evaluation.classification import best_threshold
from visa_core.models.detector import Detector
from visa_core.models.encoder import TruncationWarning
from visa_core.training.run import epoch_order, open_run
from visa_core.training.supervised import LengthPlan, Updater, pick_device, write_result
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ, VALUEEVAL20

LABEL_NORM = 0.5
"""Length of a category's starting weights: logits then differ by about one between texts."""

log = logging.getLogger("visa_trainers.detector")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of n rows: values [n, K], categories [n, 20], and which of the two each row has, [n]
    bool.
    """

    values: torch.Tensor
    has_values: torch.Tensor
    categories: torch.Tensor
    has_categories: torch.Tensor

    def take(self, rows: Sequence[int], device: torch.device) -> Labels:
        """The labels of some rows, on a device."""
        index = torch.tensor(rows)
        picked = {name: tensor[index].to(device) for name, tensor in vars(self).items()}
        return Labels(**picked)


def train(config: DetectorConfig) -> Path:
    """Train a Detector and save it in `config.out`; returns that folder."""
    config = with_recipe(config)
    device = pick_device(config.device)
    space = ValueSpace.from_file(config.space) if config.space else SCHWARTZ
    training, held_out = hold_out(labelled_rows(config, space), config)
    torch.manual_seed(config.seed)
    model = build_model(config, space, training).to(device).train()
    tokens, without_query = tokenize(model, training)
    labels = stack_labels(training, space)
    start_category_head(model, labels)
    plan = LengthPlan([len(row) for row in tokens], config.batch_size, config.epochs, config.seed)
    updater = Updater.described(model, plan.total_steps, config)
    run = open_run(config, plan.total_steps, {"model": model, "updater": updater}, "detector")
    for step in run.steps():
        batch = plan.rows(step)
        dropped = (torch.rand(len(batch)) < config.query_dropout).tolist()
        texts = [
            (without_query if drop else tokens)[row]
            for row, drop in zip(batch, dropped, strict=True)
        ]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            scores, logits = model(texts)
        loss, metrics = detector_loss(scores, logits, labels.take(batch, device))
        metrics = updater.update(loss, step) | metrics
        run.log(step, metrics)
    updater.use_average()
    model.eval()
    model.config = replace(
        model.config,
        vector_trained=bool(labels.has_values.any()),
        category_threshold=choose_threshold(model, held_out),
    )
    write_result(config.out, model.write)
    return config.out


def detector_loss(
    scores: torch.Tensor, logits: torch.Tensor | None, labels: Labels
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean over rows of the row's own loss: MSE of its vector, or binary cross entropy of its
    categories.

    scores [B, K], logits [B, 20] or None when no row has categories.
    """
    square = (scores.float() - labels.values).square().mean(1)
    loss = (square * labels.has_values).sum()
    metrics = {}
    if labels.has_values.any():
        metrics["mse"] = square[labels.has_values].mean().detach()
    if logits is not None:
        entropy = F.binary_cross_entropy_with_logits(
            logits.float(), labels.categories, reduction="none"
        ).mean(1)
        loss = loss + (entropy * labels.has_categories).sum()
        if labels.has_categories.any():
            metrics["bce"] = entropy[labels.has_categories].mean().detach()
    return loss / len(scores), metrics


def labelled_rows(config: DetectorConfig, space: ValueSpace) -> list[LabelledDialogue]:
    """The rows of --data that have labels; raises ValueError when there are none."""
    rows = load_labelled(config.data, space)
    kept = [row for row in rows if row.dialogue.values is not None or row.categories is not None]
    if not kept:
        raise ValueError(
            f"--data {' '.join(config.data)}: none of its {len(rows)} records has values to learn"
        )
    if len(kept) < len(rows):
        log.warning(
            "%d of %d records have no values and are left out", len(rows) - len(kept), len(rows)
        )
    return kept


def hold_out(
    rows: list[LabelledDialogue], config: DetectorConfig
) -> tuple[list[LabelledDialogue], list[LabelledDialogue]]:
    """(training rows, held-out rows): whole groups of category rows, `threshold_share` of them.

    The arguments of the validation file share no conclusion with the training file, so a threshold
    chosen on conclusions that were trained on would be too high.
    """
    candidates = [row for row in rows if row.categories is not None]
    groups = sorted({row.group for row in candidates})
    wanted = config.threshold_share * len(candidates)
    chosen: set[str] = set()
    size = 0
    for position in epoch_order(len(groups), config.seed, 0).tolist():
        if size >= wanted:
            break
        chosen.add(groups[position])
        size += sum(row.group == groups[position] for row in candidates)
    held = [row for row in candidates if row.group in chosen]
    training = [row for row in rows if row.categories is None or row.group not in chosen]
    return training, held


def build_model(
    config: DetectorConfig, space: ValueSpace, rows: Sequence[LabelledDialogue]
) -> Detector:
    """A Detector on the asked-for backbone, with a category head if any row has categories."""
    has_categories = any(row.categories is not None for row in rows)
    only_categories = all(row.categories is not None for row in rows)
    if only_categories and space.names != SCHWARTZ.names:
        raise ValueError(
            f"ValueEval'23 alone cannot teach the values of space {space.name!r}: "
            "there is no map to it; add data with value vectors"
        )
    return Detector.create(
        config.backbone,
        texts=[text for row in rows for text in (row.dialogue.query, row.dialogue.response)],
        space=space,
        pooling=config.pooling,
        max_length=config.max_length,
        category_head=has_categories,
        hidden_size=config.hidden_size,
        layers=config.layers,
    )


def tokenize(
    model: Detector, rows: Sequence[LabelledDialogue]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each row, and of its response alone."""
    queries = [row.dialogue.query for row in rows]
    responses = [row.dialogue.response for row in rows]
    tokens = model.tokenize(queries, responses)
    with warnings.catch_warnings():
        # what is cut was told by the line above
        warnings.simplefilter("ignore", TruncationWarning)
        return tokens, model.encoder.tokenize(responses)


def stack_labels(rows: Sequence[LabelledDialogue], space: ValueSpace) -> Labels:
    """Labels of all rows; a row with categories trains the category head alone."""
    has_categories = torch.tensor([row.categories is not None for row in rows])
    empty = (0,) * len(VALUEEVAL20)
    categories = torch.tensor([row.categories or empty for row in rows], dtype=torch.float32)
    values, known = space.matrix([row.dialogue.values for row in rows])
    return Labels(
        values=values,
        has_values=known & ~has_categories,
        categories=categories,
        has_categories=has_categories,
    )


@torch.no_grad()
def start_category_head(model: Detector, labels: Labels) -> None:
    """Give the category head what is known before training: how common and what each category is.

    Biases start at the categories' log odds. On a pretrained backbone with mean pooling a
    category's weights start along the encoding of its title and definition, less the mean of all
    of them, so that categories with few examples begin with what their names mean.
    """
    if model.category_head is None:
        return
    present = labels.categories[labels.has_categories]
    share = (present.sum(0) + 1) / (len(present) + 2)
    model.category_head.score.bias.copy_(torch.log(share / (1 - share)))
    if model.category_head.query is None:
        model.eval()
        texts = [f"{value.title}: {value.definition}" for value in VALUEEVAL20.dimensions]
        hidden, mask = model.encoder(model.encoder.tokenize(texts))
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        directions = F.normalize(pooled - pooled.mean(0), dim=-1)
        model.category_head.score.weight.copy_(LABEL_NORM * directions)
        model.train()


def choose_threshold(model: Detector, held_out: Sequence[LabelledDialogue]) -> float:
    """The probability from which a category counts as present, best on rows kept out of
    training.
    """
    if not held_out:
        return model.config.category_threshold
    probabilities = model.predict_categories(
        [row.dialogue.query for row in held_out], [row.dialogue.response for row in held_out]
    )
    truth = torch.tensor([row.categories for row in held_out]).bool()
    return best_threshold(probabilities, truth)
