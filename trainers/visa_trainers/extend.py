"""Extend a detector or translator by new values: frozen, by rehearsal, and plainly to compare.

N rows   K values of the larger space
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from visa_core.config.extend import ExtendScorerConfig
from visa_core.data.sources import load_dialogues, load_rewrite_examples
from visa_core.evaluation.forgetting import chosen_way, errors, write_forgetting
from visa_core.models.detector import Detector
from visa_core.models.encoder import ModelFolderError
from visa_core.models.growth import grown_scorer, kept_positions
from visa_core.models.translator import Translator
from visa_core.training.run import RunFinished, open_run
from visa_core.training.supervised import LengthPlan, Updater, pick_device, write_result
from visa_core.value_space import ValueSpace
from visa_trainers import translator

log = logging.getLogger("visa_trainers.extend")

Scorer = Detector | Translator
PROTECTED = ("frozen", "rehearsal")
WAYS = (*PROTECTED, "plain")


@dataclass(frozen=True)
class Labelled:
    """Texts by column (query, response; or instruction, query, response) and labels [N, K]."""

    columns: tuple[list[str], ...]
    labels_NK: torch.Tensor

    def joined(self, other: Labelled) -> Labelled:
        """The rows of both."""
        pairs = zip(self.columns, other.columns, strict=True)
        return Labelled(
            tuple(a + b for a, b in pairs), torch.cat([self.labels_NK, other.labels_NK])
        )


def train(config: ExtendScorerConfig) -> Path:
    """Train all ways, measure them, write the report; returns the path of forgetting.json."""
    space = ValueSpace.from_file(config.space)
    old = open_scorer(config.model)
    kept = kept_positions(old.space, space)
    new_rows = read_rows(old, config.data, space)
    old_rows = read_rows(old, config.rehearsal, space)
    held_out, held_out_old = (
        read_rows(old, specs, space) for specs in (config.held_out, config.held_out_old)
    )
    reading_NK = new_rows.labels_NK.clone()
    reading_NK[:, kept] = old.predict(*new_rows.columns)
    both = Labelled(new_rows.columns, reading_NK).joined(old_rows)
    plain_NK = new_rows.labels_NK.clone()
    plain_NK[:, kept] = 0.0  # as a data set of the new values alone is read: not named is absent
    data = {
        "frozen": both,
        "rehearsal": both,
        "plain": Labelled(new_rows.columns, plain_NK),
    }
    words = [text for column in new_rows.columns for text in column] if config.add_words else []
    measured: dict[str, Any] = {
        "before": errors(old.predict(*held_out_old.columns), held_out_old.labels_NK[:, kept])
    }
    results = {}
    for way in WAYS:
        folder = train_way(replace(config, out=config.out / way), way, old, space, words, data[way])
        results[way] = type(old).from_pretrained(folder)
        measured[way] = measure(results[way], held_out, held_out_old, kept)
    if config.reference is not None:
        reference = type(old).from_pretrained(config.reference)
        if reference.space.names != space.names:
            raise ValueError(f"--reference {config.reference}: its values are not those of --space")
        measured["together"] = measure(reference, held_out, held_out_old, kept)
    chosen = chosen_way(measured, PROTECTED, config.tolerance)
    results[chosen].save_pretrained(config.out / "model")
    record = {
        "part": old.kind,
        "old": list(old.space.names),
        "new": [name for name in space.names if name not in old.space.names],
        "chosen": chosen,
        "measured": measured,
        "rows": {"new": len(new_rows.labels_NK), "rehearsal": len(old_rows.labels_NK)},
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
    }
    return write_forgetting(config.out, record)


def train_way(
    config: ExtendScorerConfig,
    way: str,
    old: Scorer,
    space: ValueSpace,
    words: Sequence[str],
    data: Labelled,
) -> Path:
    """One way's model in `config.out`; a run that is there already is gone on with."""
    config = replace(config, resume=(config.out / "run.json").is_file())
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    model = grown_scorer(old, space, words).to(device).train()
    keep_old = freeze_old(model, old) if way == "frozen" else lambda: None
    tokens = model.tokenize(*data.columns)
    plan = LengthPlan([len(row) for row in tokens], config.batch_size, config.epochs, config.seed)
    updater = Updater(
        model,
        plan.total_steps,
        lr=config.lr,
        head_scale=config.head_scale,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
    )
    state = {"model": model, "updater": updater}
    try:
        run = open_run(config, plan.total_steps, state, way)
    except RunFinished:
        log.info("%s is there already", config.out)
        return config.out
    for step in run.steps():
        batch = plan.rows(step)
        scores, _ = model([tokens[row] for row in batch])
        loss = F.mse_loss(scores.float(), data.labels_NK[batch].to(device))
        metrics = updater.update(loss, step)
        keep_old()
        run.log(step, metrics)
    write_result(config.out, model.eval().write)
    return config.out


def freeze_old(model: Scorer, old: Scorer) -> Callable[[], None]:
    """Let only new rows of the heads and new words learn; the returned function undoes whatever an
    update did to the old ones (decay, moments), to be called after each.
    """
    kept = kept_positions(old.space, model.space)
    head, embeddings = model.vector_head, model.encoder.model.get_input_embeddings().weight
    for weight in model.parameters():
        weight.requires_grad_(False)
    words = list(range(len(old.encoder.model.get_input_embeddings().weight)))
    linears = [linear for linear in (head.score, head.query) if linear is not None]
    parts: list[tuple[nn.Parameter, list[int]]] = [
        (weight, kept) for linear in linears for weight in (linear.weight, linear.bias)
    ]
    if len(embeddings) > len(words):
        parts.append((embeddings, words))
    held = [(weight, rows, weight[rows].detach().clone()) for weight, rows in parts]
    for weight, rows in parts:
        weight.requires_grad_(True)
        weight.register_hook(lambda grad, rows=rows: _without(grad, rows))

    @torch.no_grad()
    def restore() -> None:
        for weight, rows, values in held:
            weight[rows] = values

    return restore


def _without(grad: torch.Tensor, rows: list[int]) -> torch.Tensor:
    grad = grad.clone()
    grad[rows] = 0
    return grad


def measure(
    model: Scorer, held_out: Labelled, held_out_old: Labelled, kept: list[int]
) -> dict[str, Any]:
    """Errors of old values on old rows and on rows of all values, and of new ones on the latter."""
    new = [k for k in range(len(model.space)) if k not in kept]
    old_NK, all_NK = model.predict(*held_out_old.columns), model.predict(*held_out.columns)
    truth_NK = held_out.labels_NK
    return {
        **errors(old_NK[:, kept], held_out_old.labels_NK[:, kept]),
        "among_new": errors(all_NK[:, kept], truth_NK[:, kept]),
        "new": errors(all_NK[:, new], truth_NK[:, new]),
    }


def open_scorer(folder: Path) -> Scorer:
    """The detector or translator of a folder. Raises ModelFolderError for anything else."""
    try:
        return Detector.from_pretrained(folder)
    except ModelFolderError as error:
        if "visa-translator" not in str(error):
            raise
    return Translator.from_pretrained(folder)


def read_rows(model: Scorer, specs: tuple[str, ...], space: ValueSpace) -> Labelled:
    """Texts and labels of data for this kind of model; a value that is not named is 0."""
    if isinstance(model, Translator):
        rows = load_rewrite_examples(specs, space)
        shifts = [space.vector(row.shift or {}, model.limit) for row in rows]
        return Labelled(translator.columns(rows), torch.stack(shifts))
    dialogues = [row for row in load_dialogues(specs, space) if row.values is not None]
    if not dialogues:
        raise ValueError(f"{' '.join(specs)}: no row has values to learn")
    columns = ([row.query for row in dialogues], [row.response for row in dialogues])
    return Labelled(columns, torch.stack([space.vector(row.values or {}) for row in dialogues]))
