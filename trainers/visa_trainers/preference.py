"""The loop of DPO and SimPO: pairs made once, the reference read once, steps on the loss."""

from __future__ import annotations

import shutil
from pathlib import Path

from visa_core.config.preference import PreferenceTraining
from visa_core.models.rewriter import Rewriter
from visa_core.training.preference import (
    Losses,
    PairRow,
    PairScorer,
    Reference,
    backward,
    encode,
    reference_logprobs,
)
from visa_core.training.preference_pairs import PAIR_FILE, prepare_pairs
from visa_core.training.run import batch_rows, open_run
from visa_core.training.stage import load_rewriter, make_optimizer
from visa_core.training.supervised import pick_device, write_result


def train(
    config: PreferenceTraining, losses: Losses, label: str, reference: Path | None = None
) -> Path:
    """Train the rewriter on pairs and save it in `config.out`; returns that folder.

    reference: folder of the model whose logprobs `losses` gets; without one it gets None.
    """
    device = pick_device(config.device)
    rewriter = load_rewriter(config)
    model = rewriter.model.float().to(device)
    rows = encode(rewriter, prepare_pairs(config, rewriter))
    known = None if reference is None else frozen_logprobs(config, reference, rows, rewriter)
    scorer = PairScorer(model.train(), rewriter.pad_id, config.precision)
    total_steps = config.steps or max(1, round(config.epochs * len(rows) / config.batch_size))
    optimizer = make_optimizer(model, config, total_steps)
    run = open_run(config, total_steps, {"model": model, "optimizer": optimizer}, label)
    for step in run.steps():
        chosen = batch_rows(len(rows), config.batch_size, config.seed, step).tolist()
        metrics = backward(scorer, [rows[i] for i in chosen], known, losses, config)
        run.log(step, {**metrics, **optimizer.step(step)})
    model.eval()
    write_result(config.out, lambda folder: write(rewriter, config, folder))
    return config.out


def frozen_logprobs(
    config: PreferenceTraining, folder: Path, rows: list[PairRow], started: Rewriter
) -> Reference:
    """Logprobs of all pairs under the reference, before anything is trained; a reference of
    another folder is given up again at once.
    """
    frozen = started
    if folder != config.model:
        frozen = Rewriter.from_pretrained(folder, template=config.template)
        if frozen.tokenizer.get_vocab() != started.tokenizer.get_vocab():
            raise ValueError(f"--reference {folder} has another tokenizer than --model")
    model = frozen.model.float().to(started.model.device).eval()
    scorer = PairScorer(model, started.pad_id, config.precision)
    return reference_logprobs(scorer, rows, config.token_budget)


def write(rewriter: Rewriter, config: PreferenceTraining, folder: Path) -> None:
    """The trained rewriter, and the pairs beside it."""
    rewriter.write(folder)
    pairs = config.pair_file or config.out / PAIR_FILE
    shutil.copy2(pairs, folder / PAIR_FILE)
