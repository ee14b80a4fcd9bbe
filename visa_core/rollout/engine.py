"""The engine protocol: prompts as token ids in, packed rollouts out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
    ) -> RolloutBatch:
        """`completions` rows for each of P prompts, rows of one prompt adjacent; the same seed
        gives the same rows.
        """
        ...

    def weights_updated(self) -> None:
        """The trainer has changed the weights: drop whatever was derived from the old ones."""
        ...
