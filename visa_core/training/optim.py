"""Optimizers of the rewriter's stages: AdamW, or Muon for the matrices with AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a fraction of its peak, a pure function of the step: linear warm-up,
    then "cosine" or "linear" down to a tenth, or "constant".
    """

    total_steps: int
    name: str = "cosine"
    warmup: float = 0.0

    def factor(self, step: int) -> float:
        """Learning rate at `step` (0-based) as a fraction of the peak."""
        warm = self.warmup * self.total_steps
        if step < warm:
            return (step + 1) / (warm + 1)
        if self.name == "constant":
            return 1.0
        done = (step - warm) / max(1.0, self.total_steps - warm)
        fall = 0.5 * (1 + math.cos(math.pi * done)) if self.name == "cosine" else 1 - done
        return 0.1 + 0.9 * fall


class Optimizer:
    """One or two torch optimizers over fp32 masters, under one schedule, with gradient clipping.

    name "muon" orthogonalises the momentum of the hidden matrices (torch.optim.Muon) at `muon_lr`,
    and trains embeddings, norms and biases by AdamW at `lr`.

    Weights may be float32, bfloat16 or float16, and views of storage that another library owns:
    they are written in place and their storage is never replaced. A float32 (or float64) weight
    is its own master; the others, and all with `offload` (masters and moments in host memory), have
    one that only this object holds. The gradient of a low-precision weight is summed over
    micro-batches in float32: a hook takes it from `weight.grad` after each backward pass, so read
    it through `gradients()`.

    The clipping factor stays on the device. A gradient that is not finite never reaches the
    weights: on the CPU (and with Muon or `offload`, which need the host anyway) `step` raises
    FloatingPointError at once; on a GPU AdamW skips that update on the device, and the next
    `step` or `state_dict` raises.
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
        offload: bool = False,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.schedule = Schedule(total_steps, schedule, warmup)
        self.max_grad_norm = max_grad_norm
        self.masters = [_master(p, offload) for p in self.parameters]
        self._sums: dict[int, torch.Tensor] = {}
        self._unchecked: tuple[torch.Tensor, int] | None = None
        for i, weight in enumerate(self.parameters):
            if weight.dtype in LOW_PRECISION:
                weight.register_post_accumulate_grad_hook(self._collector(i))
        master_of = {id(p): m for p, m in zip(self.parameters, self.masters, strict=True)}
        hidden, rest = split_parameters(model) if name == "muon" else ([], self.parameters)
        groups = decay_groups([master_of[id(p)] for p in rest], weight_decay)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
        ]
        if hidden:
            muon = torch.optim.Muon(
                [master_of[id(p)] for p in hidden],
                lr=muon_lr,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self.optimizers.append(muon)
        self.base_lrs = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self._on_device = len(self.optimizers) == 1 and all(m.is_cuda for m in self.masters)

    def factor(self, step: int) -> float:
        """Learning rate at `step` (0-based) as a fraction of the peak; decays end at a tenth."""
        return self.schedule.factor(step)

    def gradients(self) -> list[torch.Tensor | None]:
        """The float32 gradients so far, one per trained weight; None where none came."""
        return [self._sums.get(i, p.grad) for i, p in enumerate(self.parameters)]

    def step(self, step: int) -> dict[str, torch.Tensor | float]:
        """Clip, update, clear the gradients; returns grad_norm (before clipping) and lr."""
        self.check()
        grads = self.gradients()
        norm = nn.utils.get_total_norm([grad for grad in grads if grad is not None])
        for master, grad in zip(self.masters, grads, strict=True):
            master.grad = None if grad is None else grad.to(master.device, master.dtype)
        if self._on_device:
            self._clip_in_the_kernel(norm, step)
        else:
            _refuse_unless_finite(norm, step)
            nn.utils.clip_grads_with_norm_(
                self.masters, self.max_grad_norm, norm.to(self.masters[0].device)
            )
        for optimizer, bases in zip(self.optimizers, self.base_lrs, strict=True):
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * self.factor(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._publish()
        return {"grad_norm": norm, "lr": self.base_lrs[0][0] * self.factor(step)}

    def zero_grad(self) -> None:
        """Forget the gradients so far."""
        self._sums.clear()
        for weight in self.parameters:
            weight.grad = None

    def check(self) -> None:
        """Raise FloatingPointError when the last update on a GPU met a gradient that is not finite
        and was skipped; waits for that update.
        """
        if self._unchecked is not None:
            norm, step = self._unchecked
            self._unchecked = None
            _refuse_unless_finite(norm, step)

    def state_dict(self) -> dict[str, Any]:
        """Moments of every optimizer, and the masters that are not the weights themselves."""
        self.check()
        masters = {str(i): self.masters[i] for i in self._own_masters()}
        return {"optimizers": [o.state_dict() for o in self.optimizers], "masters": masters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        saved_masters = state.get("masters", {})
        own = self._own_masters()
        if {str(i) for i in own} != set(saved_masters):
            raise ValueError(
                f"the checkpoint holds {len(saved_masters)} float32 masters and this run keeps "
                f"{len(own)}: resume with the dtype and offload setting of the run that wrote it"
            )
        for i in own:
            self.masters[i].copy_(saved_masters[str(i)])
        self._publish()

    def _own_masters(self) -> list[int]:
        pairs = zip(self.parameters, self.masters, strict=True)
        return [i for i, (p, m) in enumerate(pairs) if m is not p]

    def _collector(self, index: int) -> Callable[[torch.Tensor], None]:
        def collect(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            grad, weight.grad = weight.grad, None
            if index in self._sums:
                self._sums[index] += grad
            else:
                self._sums[index] = grad.float()

        return collect

    def _clip_in_the_kernel(self, norm: torch.Tensor, step: int) -> None:
        """Fused AdamW divides gradients by `grad_scale` and leaves everything as it is where
        `found_inf` is not zero: both stay on the device.
        """
        adamw = self.optimizers[0]
        adamw.grad_scale = ((norm + 1e-6) / self.max_grad_norm).clamp(min=1.0).float()
        adamw.found_inf = (~torch.isfinite(norm)).float()
        self._unchecked = norm, step

    @torch.no_grad()
    def _publish(self) -> None:
        """Write the masters into the weights, in place, and forget their gradients."""
        for i in self._own_masters():
            self.parameters[i].copy_(self.masters[i])
        self.zero_grad()


def _master(weight: nn.Parameter, offload: bool) -> torch.Tensor:
    if weight.dtype not in LOW_PRECISION and not (offload and weight.is_cuda):
        return weight
    return weight.detach().to("cpu" if offload else weight.device, torch.float32, copy=True)


def _refuse_unless_finite(norm: torch.Tensor, step: int) -> None:
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"the gradient norm is {norm.item()} at step {step}; lower the learning rate"
        )


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(hidden matrices, everything else); embeddings and the head are not hidden."""
    outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings()
    outer |= {id(p) for p in head.parameters()} if head is not None else set()
    parameters = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in parameters if p.ndim == 2 and id(p) not in outer]
    chosen = {id(p) for p in hidden}
    return hidden, [p for p in parameters if id(p) not in chosen]


def decay_groups(parameters: list[torch.Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, vectors do not."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
