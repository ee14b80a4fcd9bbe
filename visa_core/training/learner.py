"""The model in training with its optimizer, on one rank or several: forward, backward, step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from visa_core.config import RewriterTraining
from visa_core.training.distributed import World
from visa_core.training.optim import Optimizer
from visa_core.training.supervised import write_result

Result = TypeVar("Result")
Bucket = list[tuple[str, torch.Tensor]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Learner(Protocol):
    """What a trainer needs of the model it trains, wherever its weights and moments lie.

    With several ranks each forward and backward pass, `step`, `state_dict`, `load_state_dict`,
    `whole` and `buckets` are collective: all ranks call them equally often and in the same order.
    Losses are parts of one sum over ranks, so gradients are summed, not averaged.
    """

    model: nn.Module
    """What the functions given to `forward` call."""
    keeps_storage: bool
    """Whether a parameter's storage stays where it is, so that others may hold views of it."""

    @property
    def readable(self) -> nn.Module:
        """The Hugging Face module, to sample from and to save inside `whole`."""
        ...

    def forward(self, function: Callable[..., Result], *args: Any) -> Result:
        """function(model, *args). All that reads the trained weights goes through here."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this part of the step's loss."""
        ...

    def step(self, update: int) -> dict[str, torch.Tensor | float]:
        """Clip, update and clear the gradients; returns grad_norm (before clipping) and lr.

        Raises FloatingPointError for a gradient that is not finite, see `Optimizer`.
        """
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Inside, `readable` has all of its weights on every rank and can sample."""
        ...

    def buckets(self, max_bytes: int = 2**28) -> Iterator[Bucket]:
        """All weights, complete and by name, in buckets of at most `max_bytes` (or one tensor)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer for a checkpoint; complete on rank 0."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, given to every rank."""
        ...


class PlainLearner:
    """A model whole on every rank; its gradients are summed over the ranks before each update."""

    keeps_storage = True

    def __init__(self, model: nn.Module, optimizer: Optimizer, world: World) -> None:
        self.model = model
        self.optimizer = optimizer
        self.world = world

    @property
    def readable(self) -> nn.Module:
        """The model itself."""
        return self.model

    def forward(self, function: Callable[..., Result], *args: Any) -> Result:
        """function(model, *args)."""
        with checkpointing(self.model):
            return function(self.model, *args)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this part of the step's loss."""
        loss.backward()

    def step(self, update: int) -> dict[str, torch.Tensor | float]:
        """Sum gradients over ranks, clip, update, clear; returns grad_norm and lr."""
        self.world.sum_gradients(self._gradients())
        return self.optimizer.step(update)

    def _gradients(self) -> list[torch.Tensor]:
        """Those that came; ranks run the same model, so the same weights have one on all."""
        return [grad for grad in self.optimizer.gradients() if grad is not None]

    def whole(self) -> AbstractContextManager[None]:
        """Weights are always whole here."""
        return nullcontext()

    def buckets(self, max_bytes: int = 2**28) -> Iterator[Bucket]:
        """All weights by name, in buckets of at most `max_bytes` (or one tensor)."""
        for names in name_buckets(self.model, max_bytes):
            yield [(name, self.model.get_parameter(name).detach()) for name in names]

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, in place."""
        if "optimizer" not in state:
            raise ValueError(
                "the checkpoint was written under another --zero; resume with the run's own"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def make_learner(
    model: nn.Module, config: RewriterTraining, total_updates: int, world: World
) -> Learner:
    """The learner that the settings describe; the model is on the world's device, in the type of
    `config.weights`, and the learner may rearrange its storage.
    """
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.zero:
        from visa_core.training.zero import ZeroLearner

        return ZeroLearner(model, config, total_updates, world)
    optimizer = Optimizer(
        model,
        total_updates,
        lr=config.lr,
        name=config.optimizer,
        muon_lr=config.muon_lr,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
        max_grad_norm=config.max_grad_norm,
        offload=config.offload,
    )
    return PlainLearner(model, optimizer, world)


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Let layers whose gradient checkpointing is enabled do it inside, in evaluation mode too.

    transformers asks the layer's own `training` flag; those of its parts (dropout) stay as they
    are, and so does sampling outside, which needs the cache that checkpointing forbids.
    """
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    layers = [m for m in layers if isinstance(m, GradientCheckpointingLayer) and not m.training]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def name_buckets(
    model: nn.Module, max_bytes: int, size: Callable[[nn.Parameter], int] = lambda p: p.nbytes
) -> Iterator[list[str]]:
    """Names of the parameters in order, as many together as have at most `max_bytes`."""
    names: list[str] = []
    total = 0
    for name, parameter in model.named_parameters():
        if names and total + size(parameter) > max_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += size(parameter)
    if names:
        yield names


def finish_run(world: World, learner: Learner, out: Path, write: Callable[[Path], None]) -> None:
    """Replace the run's folder by its model: rank 0 writes, the others wait for it."""
    with learner.whole():
        learner.readable.eval()
        if world.is_main:
            write_result(out, write)
        world.wait()
