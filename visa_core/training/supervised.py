"""What trainers of text classifiers and regressors share: batches by length, one optimizer
update.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visa_core.config import VectorTraining
from visa_core.training.checkpoint import atomic_folder
from visa_core.training.distributed import pick_device as pick_device
from visa_core.training.run import epoch_order

POOL = 32
"""Batches that are sorted by length together: more pads less, fewer keeps batches more random."""


class LengthPlan:
    """Which rows each step trains on: every row once an epoch, batches of similar length.

    The order is a pure function of (seed, epoch), so a resumed run sees the same batches.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> None:
        if not lengths:
            raise ValueError(
                "the training set is empty: nothing is left after reading and filtering"
            )
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = math.ceil(len(lengths) / batch_size)
        self.total_steps = epochs * self.steps_per_epoch
        self._epoch: int | None = None
        self._batches: list[list[int]] = []

    def rows(self, step: int) -> list[int]:
        """Row numbers of the batch at `step` (0-based)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._arrange(epoch)
        return self._batches[position]

    def _arrange(self, epoch: int) -> list[list[int]]:
        order = epoch_order(len(self.lengths), self.seed, epoch).tolist()
        # chunks are whole pools, so at most the last batch of the epoch is short
        pool = POOL * self.batch_size
        batches = []
        for start in range(0, len(order), pool):
            chunk = sorted(order[start : start + pool], key=self.lengths.__getitem__)
            batches += [
                chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)
            ]
        shuffle = epoch_order(len(batches), self.seed + 1, epoch).tolist()
        return [batches[i] for i in shuffle]


class Updater:
    """AdamW with warm-up and cosine decay, gradient clipping and a running average of the weights.

    head_scale: the heads start from nothing, so they learn at `lr * head_scale`.
    average: decay of the running average that `use_average` puts in place at the end; 0 is none.
    The learning rate is a pure function of the step.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        lr: float,
        head_scale: float = 1.0,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        average: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.model = model
        self.total_steps = total_steps
        self.warmup_steps = warmup * total_steps
        self.average = average
        self.max_grad_norm = max_grad_norm
        groups = _parameter_groups(model, lr, head_scale, weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
        self.base_lrs = [group["lr"] for group in groups]
        self.averaged = (
            {name: weight.detach().clone() for name, weight in model.named_parameters()}
            if average
            else {}
        )

    @classmethod
    def described(cls, model: nn.Module, total_steps: int, config: VectorTraining) -> Updater:
        """The updater that the settings of a detector's or translator's training describe."""
        return cls(
            model,
            total_steps,
            lr=config.lr,
            head_scale=config.head_scale,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
            average=config.average,
        )

    def factor(self, step: int) -> float:
        """Learning rate at `step` (0-based) as a fraction of the peak."""
        if step + 1 < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1.0, self.total_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))

    def update(self, loss: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """Backward and one optimizer step; returns the loss and the gradient norm before clipping.

        Raises FloatingPointError at a loss that is not finite, before it reaches the weights.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower --lr")
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average(step)
        return {"loss": loss.detach(), "grad_norm": norm}

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        if not self.average:
            return
        # early on the average follows closely, so that it does not remember the first weights
        decay = min(self.average, (1 + step) / (10 + step))
        weights = dict(self.model.named_parameters())
        torch._foreach_lerp_(
            [self.averaged[name] for name in weights], list(weights.values()), 1 - decay
        )

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the model."""
        for name, weight in self.model.named_parameters():
            if name in self.averaged:
                weight.copy_(self.averaged[name])

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and average, for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict(), "averaged": self.averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.optimizer.load_state_dict(state["optimizer"])
        for name, weight in self.averaged.items():
            weight.copy_(state["averaged"][name])


def _parameter_groups(
    model: nn.Module, lr: float, head_scale: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not; what is not the encoder learns faster."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        rate = lr if name.startswith("encoder.") else lr * head_scale
        decay = weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]


KEPT_FILES = ("metrics.jsonl", "samples.jsonl", "track.txt")
KEPT_FOLDERS = ("tensorboard", "wandb", "best")
"""What of a run's folder stays beside its result."""


def write_result(run_folder: Path, write: Callable[[Path], None]) -> None:
    """Replace a finished run's folder by its model and the record of the run, in one rename.

    The checkpoints go with the old folder: the run needs them no more.
    """
    with atomic_folder(run_folder) as scratch:
        write(scratch)
        for name in KEPT_FILES:
            if (run_folder / name).is_file():
                shutil.copy2(run_folder / name, scratch / name)
        record = json.loads((run_folder / "run.json").read_text()) | {"finished": True}
        (scratch / "run.json").write_text(json.dumps(record, indent=1))
        for name in KEPT_FOLDERS:
            if (run_folder / name).is_dir():
                shutil.copytree(run_folder / name, scratch / name, symlinks=True)
