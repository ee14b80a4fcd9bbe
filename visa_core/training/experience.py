"""What a step of GRPO trains on: prompts, their completions and the rewards, group by group.

Shapes: P prompts, G completions each, B = P * G rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from visa_core.rewards import RewardOutput
from visa_core.rollout.chunks import joined, with_groups
from visa_core.types import Consistency, Prompt, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class Experience:
    """P prompts, their rollouts with the texts that they say [B], and the rewards [B]."""

    prompts: list[Prompt]
    rollouts: RolloutBatch
    rewrites: list[str]
    rewards: RewardOutput

    def groups(self, chosen: Sequence[int]) -> Experience:
        """These prompts with all that belongs to them, in this order. Groups are of one size."""
        size = len(self.rewrites) // len(self.prompts)
        rows = [group * size + i for group in chosen for i in range(size)]
        return Experience(
            prompts=[self.prompts[group] for group in chosen],
            rollouts=with_groups(self.rollouts, chosen),
            rewrites=[self.rewrites[row] for row in rows],
            rewards=reward_rows(self.rewards, torch.tensor(rows, dtype=torch.long)),
        )


def joined_experience(parts: Sequence[Experience]) -> Experience:
    """All prompts in order."""
    if len(parts) == 1:
        return parts[0]
    return Experience(
        prompts=[prompt for part in parts for prompt in part.prompts],
        rollouts=joined([part.rollouts for part in parts]),
        rewrites=[text for part in parts for text in part.rewrites],
        rewards=joined_rewards([part.rewards for part in parts]),
    )


def replaced(batch: Experience, places: Sequence[int], fresh: Experience) -> Experience:
    """The batch with its prompts at `places` exchanged for the fresh ones, one for one."""
    order = list(range(len(batch.prompts)))
    for i, place in enumerate(places):
        order[place] = len(batch.prompts) + i
    return joined_experience([batch, fresh]).groups(order)


def joined_rewards(parts: Sequence[RewardOutput]) -> RewardOutput:
    """Rewards of several scorings, one behind the other; group advantages are not kept."""

    def together(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    names = [f.name for f in fields(RewardOutput) if _is_tensor(f.name)]
    kinds = [f.name for f in fields(Consistency)]
    scores = {k: torch.cat([getattr(part.consistency, k) for part in parts]) for k in kinds}
    return RewardOutput(
        **{name: together(name) for name in names},
        consistency=Consistency(**scores),
        non_finite=sum(part.non_finite for part in parts),
    )


def reward_rows(rewards: RewardOutput, rows: torch.Tensor) -> RewardOutput:
    """The rewards of some rows [B'] int64; `non_finite` stays what it was for all."""
    names = [f.name for f in fields(RewardOutput) if _is_tensor(f.name)]
    kinds = [f.name for f in fields(Consistency)]
    return replace(
        rewards,
        **{name: getattr(rewards, name)[rows] for name in names},
        consistency=Consistency(**{k: getattr(rewards.consistency, k)[rows] for k in kinds}),
        advantage=None,
    )


def _is_tensor(name: str) -> bool:
    return name not in ("consistency", "non_finite", "advantage")
