"""Seconds of a step by phase, each moment counted for the innermost phase alone."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

PHASES = ("rollout", "score", "logprobs", "loss_backward", "optimizer", "sync", "other")
"""logprobs: forward passes through the model's layers for training (TRL's: with its head; ours has
the head in the loss). other: whatever is between the named ones.
"""


class Phases:
    """A stack of phases; entering one stops the clock of the one around it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.stack = ["other"]
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def push(self, name: str) -> None:
        """Enter a phase."""
        self._tick()
        self.stack.append(name)

    def pop(self) -> None:
        """Leave it."""
        self._tick()
        self.stack.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within it, time counts for `name`."""
        self.push(name)
        try:
            yield
        finally:
            self.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Calls of a method count for a phase from now on."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.phase(name):
                return inner(*arguments, **named)

        setattr(owner, method, timed)

    def watch(self, module: nn.Module, name: str, inside: str) -> None:
        """A module's forward counts for a phase where the phase around it is `inside`."""
        entered: list[bool] = []

        def before(*_: Any) -> None:
            entered.append(self.stack[-1] == inside)
            if entered[-1]:
                self.push(name)

        def after(*_: Any) -> None:
            if entered.pop():
                self.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def restart(self) -> tuple[dict[str, float], float]:
        """Seconds by phase since the last call, and the process's CPU seconds in all, which other
        work on the machine changes less; begins anew.
        """
        self._tick()
        found, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        cpu = time.process_time()
        used, self._cpu_since = cpu - self._cpu_since, cpu
        return found, used

    def _tick(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self._since
        self._since = now
