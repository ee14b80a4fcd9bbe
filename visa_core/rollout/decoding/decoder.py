"""What the hf engine's loop asks of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Decoder(Protocol):
    """Rows of one call in slots: slot s holds some row, all rows are equally long."""

    def prefill(self, prompts: Sequence[Sequence[int]], completions: int) -> torch.Tensor:
        """Read each prompt once; logits [B, V] for the first token of its completions."""
        ...

    def worth_dropping(self, ended_S: torch.Tensor) -> bool:
        """Whether dropping the slots whose rows have ended ([S] bool on the CPU) saves more than
        it takes. Rows that stay go on being written, to no effect.
        """
        ...

    def keep(self, alive_S: torch.Tensor) -> torch.Tensor:
        """Drop the slots that are not alive ([S] bool on the CPU); which slots the remaining ones
        were, [S'] int64 on the model's device.
        """
        ...

    def step(self, token_S: torch.Tensor) -> torch.Tensor:
        """Append a token to each slot's row; logits [S, V] for the next one."""
        ...


class Unsupported(Exception):
    """The model has something that a decoder cannot do; the message says what."""
