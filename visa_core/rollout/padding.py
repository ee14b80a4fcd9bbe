"""Prompts of unequal lengths as one rectangle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


def refuse_empty(prompts: Sequence[Sequence[int]]) -> None:
    """Raises ValueError for prompts without a token."""
    empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompts {empty[:5]} are empty; a prompt needs at least one token")


def left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts aligned at their ends: ids and mask, both [P, T] int64."""
    refuse_empty(prompts)
    reversed_ids = [torch.tensor(list(prompt)[::-1]) for prompt in prompts]
    ids = pad_sequence(reversed_ids, batch_first=True, padding_value=pad_id).flip(1)
    ones = [torch.ones(len(prompt), dtype=torch.long) for prompt in prompts]
    mask = pad_sequence(ones, batch_first=True).flip(1)
    return ids.to(device), mask.to(device)
