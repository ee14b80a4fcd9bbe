"""Train the fact analyzer: cross entropy on pairs labelled entailment, neutral or contradiction."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from visa_core.config import NLIConfig
from visa_core.data.nli import load_nli_pairs
from visa_core.models.fact_analyzer import AnalyzerSettings, FactAnalyzer
from visa_core.models.nli_base import base_analyzer
from visa_core.models.nli_labels import NLI_LABELS
from visa_core.training.run import epoch_order, open_run
from visa_core.training.supervised import LengthPlan, Updater, pick_device, write_result
from visa_core.types import NLIPair

log = logging.getLogger("visa_trainers.nli")

BUILTIN_LR = 3e-3
PRETRAINED_LR = 3e-5


def train(config: NLIConfig) -> Path:
    """Train a fact analyzer and save it in `config.out`; returns that folder."""
    device = pick_device(config.device)
    training, held_out = hold_out(load_nli_pairs(config.data), config)
    torch.manual_seed(config.seed)
    settings = AnalyzerSettings(split=config.split, max_tokens=config.max_length)
    analyzer = base_analyzer(
        config, settings, [t for p in training for t in (p.premise, p.hypothesis)]
    )
    model = analyzer.model.to(device).train()
    training, lengths = fitting(analyzer, training)
    targets = label_outputs(analyzer, training).to(device)
    plan = LengthPlan(lengths, config.batch_size, config.epochs, config.seed)
    updater = Updater(
        model,
        plan.total_steps,
        lr=config.lr or (BUILTIN_LR if config.backbone == "builtin" else PRETRAINED_LR),
        weight_decay=config.weight_decay,
        warmup=config.warmup,
    )
    run = open_run(config, plan.total_steps, {"model": model, "updater": updater}, "nli")
    for step in run.steps():
        rows = plan.rows(step)
        inputs = analyzer.encode([(training[i].premise, training[i].hypothesis) for i in rows])
        logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits
        wanted = targets[rows]
        loss = F.cross_entropy(logits.float(), wanted)
        metrics = updater.update(loss, step)
        run.log(step, metrics | {"accuracy": (logits.argmax(1) == wanted).float().mean()})
    model.eval()
    figures = evaluate(analyzer, held_out)
    log.info("held-out pairs: %s", figures)

    def write(folder: Path) -> None:
        analyzer.write(folder)
        (folder / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")

    write_result(config.out, write)
    return config.out


def hold_out(pairs: list[NLIPair], config: NLIConfig) -> tuple[list[NLIPair], list[NLIPair]]:
    """(training pairs, held-out pairs), a fixed function of the seed."""
    count = min(config.held_out, len(pairs) // 10)
    order = epoch_order(len(pairs), config.seed, 0).tolist()
    held = set(order[:count])
    return [p for i, p in enumerate(pairs) if i not in held], [pairs[i] for i in order[:count]]


def fitting(analyzer: FactAnalyzer, pairs: list[NLIPair]) -> tuple[list[NLIPair], list[int]]:
    """The pairs that fit the model and their lengths in tokens; warns how many others there are."""
    lengths = analyzer.pair_lengths([(p.premise, p.hypothesis) for p in pairs])
    kept = [i for i, length in enumerate(lengths) if length <= analyzer.limit]
    if len(kept) < len(pairs):
        log.warning(
            "%d of %d pairs are longer than %d tokens and left out of training; raise --max-length",
            len(pairs) - len(kept),
            len(pairs),
            analyzer.limit,
        )
    return [pairs[i] for i in kept], [lengths[i] for i in kept]


def label_outputs(analyzer: FactAnalyzer, pairs: Sequence[NLIPair]) -> torch.Tensor:
    """Output index of each pair's label, [B] int64; a two-label model counts contradiction as not
    entailed.
    """
    entailment, neutral, contradiction = analyzer.order
    outputs = {
        "entailment": entailment,
        "neutral": neutral,
        "contradiction": neutral if contradiction is None else contradiction,
    }
    return torch.tensor([outputs[pair.label] for pair in pairs])


def evaluate(analyzer: FactAnalyzer, pairs: Sequence[NLIPair]) -> dict[str, float | int]:
    """Accuracy on whole pairs and recall per label; {"n": 0} without pairs."""
    if not pairs:
        return {"n": 0}
    probs = analyzer.predict(
        [p.premise for p in pairs], [p.hypothesis for p in pairs], split="auto"
    )
    truth = torch.tensor([NLI_LABELS.index(pair.label) for pair in pairs])
    hit = (probs.argmax(dim=1) == truth).float()
    figures: dict[str, float | int] = {"n": len(pairs), "accuracy": float(hit.mean())}
    for index, label in enumerate(NLI_LABELS):
        if (truth == index).any():
            figures[f"recall_{label}"] = float(hit[truth == index].mean())
    return figures
