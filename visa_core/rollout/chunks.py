"""A step's prompts sampled a few at a time, so that others can work on what is there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from visa_core.rollout.engine import Engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.types import RolloutBatch


def generate_in_chunks(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    completions: int,
    sampling: SamplingConfig,
    seed: int,
    *,
    size: int,
    first_group: int = 0,
    stop_ids: Sequence[int] | None = None,
) -> Iterator[RolloutBatch]:
    """Rollouts of `size` prompts after another, the same rows as one call would give.

    The next chunk is sampled when it is asked for: score a chunk in another thread, or on another
    device, before asking. Group ids count from 0 in each chunk; `joined` puts chunks together.
    """
    if size < 1:
        raise ValueError(f"a chunk needs at least one prompt, got a size of {size}")
    for start in range(0, len(prompts), size):
        yield engine.generate(
            prompts[start : start + size],
            completions,
            sampling,
            seed,
            first_group=first_group + start,
            stop_ids=stop_ids,
        )


def joined(batches: Sequence[RolloutBatch]) -> RolloutBatch:
    """One batch of all rows in order; group ids go on counting."""
    lengths = torch.cat([batch.lengths for batch in batches])
    groups, first = [], 0
    for batch in batches:
        groups.append(batch.group_ids + first)
        first += int(batch.group_ids.max()) + 1 if len(batch.group_ids) else 0
    return RolloutBatch(
        tokens=torch.cat([batch.tokens for batch in batches]),
        cu_seqlens=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        group_ids=torch.cat(groups),
        logprobs=torch.cat([batch.logprobs for batch in batches]),
        finished=torch.cat([batch.finished for batch in batches]),
    )


def with_groups(rollouts: RolloutBatch, groups: Sequence[int]) -> RolloutBatch:
    """The rows of these groups in this order; group ids count from 0 anew.

    Rows of a group are adjacent and groups in order, as engines and `joined` give them.
    """
    rows_of = [(rollouts.group_ids == group).nonzero()[:, 0] for group in groups]
    rows = torch.cat(rows_of) if rows_of else torch.zeros(0, dtype=torch.long)
    lengths, starts = rollouts.lengths[rows], rollouts.cu_seqlens[rows]
    ends = lengths.cumsum(0)
    within = torch.arange(int(lengths.sum())) - (ends - lengths).repeat_interleave(lengths)
    tokens = starts.repeat_interleave(lengths) + within
    counts = torch.tensor([len(rows) for rows in rows_of], dtype=torch.long)
    return RolloutBatch(
        tokens=rollouts.tokens[tokens],
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]),
        group_ids=torch.arange(len(groups)).repeat_interleave(counts),
        logprobs=rollouts.logprobs[tokens],
        finished=rollouts.finished[rows],
    )
