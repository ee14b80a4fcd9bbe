"""Optimizers of the rewriter's stages: AdamW, or Muon for the matrices with AdamW for the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class Optimizer:
    """One or two torch optimizers under one schedule, with gradient clipping.

    The learning rate is a pure function of the step: linear warm-up, then "cosine", "linear" or
    "constant".
    name "muon" orthogonalises the momentum of the hidden matrices (torch.optim.Muon) at `muon_lr`,
    and trains embeddings,
    norms and biases by AdamW at `lr`.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        lr: float,
        name: str = "adamw",
        muon_lr: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        schedule: str = "cosine",
        warmup: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.total_steps = total_steps
        self.schedule = schedule
        self.warmup_steps = warmup * total_steps
        self.max_grad_norm = max_grad_norm
        hidden, rest = _split_parameters(model) if name == "muon" else ([], self.parameters)
        groups = _decay_groups(rest, weight_decay)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=lr, betas=betas)
        ]
        if hidden:
            muon = torch.optim.Muon(
                hidden, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(muon)
        self.base_lrs = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    def factor(self, step: int) -> float:
        """Learning rate at `step` (0-based) as a fraction of the peak; decays end at a tenth."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1.0, self.total_steps - self.warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done
        return 0.1 + 0.9 * fall

    def step(self, step: int) -> dict[str, torch.Tensor | float]:
        """Clip, update, clear the gradients; returns grad_norm (before clipping) and lr.

        Raises FloatingPointError for a gradient that is not finite, before it reaches the weights.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm is {norm.item()} at step {step}; lower the learning rate"
            )
        for optimizer, bases in zip(self.optimizers, self.base_lrs, strict=True):
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * self.factor(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": self.base_lrs[0][0] * self.factor(step)}

    def state_dict(self) -> dict[str, Any]:
        """Moments of every optimizer, for a checkpoint."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(hidden matrices, everything else); embeddings and the head are not hidden."""
    outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings()
    outer |= {id(p) for p in head.parameters()} if head is not None else set()
    parameters = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in parameters if p.ndim == 2 and id(p) not in outer]
    chosen = {id(p) for p in hidden}
    return hidden, [p for p in parameters if id(p) not in chosen]


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
