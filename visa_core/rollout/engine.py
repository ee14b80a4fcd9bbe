"""The engine protocol: prompts as token ids in, packed rollouts out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch

from visa_core.rollout.sampling import SamplingConfig
from visa_core.types import RolloutBatch


class Engine(Protocol):
    """Samples completions from the weights being trained."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        completions: int,
        sampling: SamplingConfig,
        seed: int,
        *,
        first_group: int = 0,
        stop_ids: Sequence[int] | None = None,
    ) -> RolloutBatch:
        """`completions` rows for each of P prompts, rows of one prompt adjacent.

        A row's random numbers come from the seed, its group in the step (first_group plus its
        prompt's place in the call) and its number in the group alone: which other prompts the call
        has changes no row beyond the rounding of its logits. group_ids count from 0 in the call.
        stop_ids replace the engine's stop tokens; the one that ends a row is its last token.
        """
        ...

    def weights_updated(self) -> None:
        """The trainer has changed the weights: drop whatever was derived from the old ones."""
        ...

    def release(self) -> None:
        """Give back memory that sampling alone needs; the next `generate` takes it again."""
        ...


@runtime_checkable
class CopyingEngine(Engine, Protocol):
    """An engine that can sample from a copy of the weights, given in buckets."""

    def load_weights(self, bucketed: Iterable[list[tuple[str, torch.Tensor]]]) -> int:
        """Write buckets of (name, whole tensor) into the copy; returns bytes written."""
        ...


@runtime_checkable
class ClosingEngine(Engine, Protocol):
    """An engine that holds more than memory of this process."""

    def close(self) -> None:
        """End it; the trained weights stay whole."""
        ...
