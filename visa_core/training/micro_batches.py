"""Rows of a step split into forward passes: by number of rows or by tokens, a prompt once a group.

Shapes: B rows and N completion tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from visa_core.types import Prompt, RolloutBatch
from visa_kernels import pack_to_budget

FLAT = 1e-6
"""A group whose advantages are all smaller teaches nothing."""


@dataclass(frozen=True)
class StepBatch:
    """What a step trains on: prompts by group, their rollouts, the rows' advantages [B]."""

    prompts: Sequence[Prompt]
    rollouts: RolloutBatch
    advantages_B: torch.Tensor

    def informative_rows(self) -> list[int]:
        """Rows of the groups that teach something; at least the first group's, so that each step
        has a forward pass.
        """
        groups = self.rollouts.group_ids
        flat = torch.zeros(len(self.prompts)).scatter_reduce(
            0, groups, self.advantages_B.abs().float().cpu(), "amax"
        )
        kept = (flat >= FLAT)[groups]
        return (kept if kept.any() else groups == groups[0]).nonzero()[:, 0].tolist()


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass. Each prompt stands once for its `group_sizes` completions, which
    are adjacent; `rows` and `tokens_N` are their places in the step.
    """

    prompts: list[list[int]]
    group_sizes: list[int]
    completions: list[list[int]]
    rows: list[int]
    tokens_N: torch.Tensor
    cu_seqlens: torch.Tensor
    sampler_N: torch.Tensor
    advantages_B: torch.Tensor


def micro_batches(
    batch: StepBatch, rows: Sequence[int], size: int, budget: int | None = None
) -> list[MicroBatch]:
    """The rows, `size` at a time; with a budget instead as many as have at most that many tokens,
    a group's prompt counted once. Groups that are larger than a pass are cut.
    """
    if budget is None:
        chosen = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    else:
        chosen = list(_within(batch, rows, budget))
    return [micro_batch(batch, some) for some in chosen]


def halved(batch: StepBatch, micro: MicroBatch) -> list[MicroBatch]:
    """The same rows in two passes."""
    middle = len(micro.rows) // 2
    return [micro_batch(batch, part) for part in (micro.rows[:middle], micro.rows[middle:])]


def micro_batch(batch: StepBatch, rows: Sequence[int]) -> MicroBatch:
    """One pass over these rows."""
    rollouts, ends = batch.rollouts, batch.rollouts.cu_seqlens
    groups = [(g, len(list(same))) for g, same in groupby(rollouts.group_ids[rows].tolist())]
    spans = [(int(ends[row]), int(ends[row + 1])) for row in rows]
    tokens_N = torch.cat([torch.arange(*span) for span in spans])
    lengths = torch.tensor([stop - start for start, stop in spans])
    return MicroBatch(
        prompts=[batch.prompts[g].ids for g, _ in groups],
        group_sizes=[number for _, number in groups],
        completions=[rollouts.tokens[start:stop].tolist() for start, stop in spans],
        rows=list(rows),
        tokens_N=tokens_N,
        cu_seqlens=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        sampler_N=rollouts.logprobs[tokens_N],
        advantages_B=batch.advantages_B[rows],
    )


def _within(batch: StepBatch, rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows of passes of at most `budget` tokens."""
    lengths = batch.rollouts.lengths.tolist()
    owner = batch.rollouts.group_ids.tolist()
    pieces: list[list[int]] = []
    costs: list[int] = []
    for group, same in groupby(rows, key=lambda row: owner[row]):
        prompt, fresh = len(batch.prompts[group].ids), True
        for row in same:
            if fresh or costs[-1] + lengths[row] > budget:
                pieces.append([])
                costs.append(prompt)
            fresh = False
            pieces[-1].append(row)
            costs[-1] += lengths[row]
    for chosen in pack_to_budget(costs, budget):
        yield [row for piece in chosen for row in pieces[piece]]


def merge(
    parts: list[tuple[int, dict[str, torch.Tensor]]],
) -> dict[str, torch.Tensor | float]:
    """Metrics of a step from those of its micro-batches: the parts of the loss add up, maxima are
    taken over all, the rest is averaged over tokens.
    """
    total = max(1, sum(count for count, _ in parts))
    weights = torch.tensor([count / total for count, _ in parts])
    merged: dict[str, torch.Tensor | float] = {}
    for key in parts[0][1]:
        values = torch.stack([metrics[key].float().cpu() for _, metrics in parts])
        if key == "loss":
            merged[key] = values.sum()
        else:
            merged[key] = values.max() if key.startswith("max_") else (values * weights).sum()
    return merged
