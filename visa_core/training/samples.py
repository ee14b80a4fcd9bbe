"""Rewrites of a run, kept in samples.jsonl of its folder: what the figures of a step look like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from visa_core.rewards import RewardOutput
from visa_core.types import Prompt, RolloutBatch

NAME = "samples.jsonl"


def write_samples(
    folder: Path,
    step: int,
    number: int,
    prompts: Sequence[Prompt],
    rollouts: RolloutBatch,
    rewrites: Sequence[str],
    rewards: RewardOutput,
) -> None:
    """Append the best and the worst rewrite of the step's first `number` prompts, one line each."""
    owner = rollouts.group_ids
    lines = []
    for group, prompt in enumerate(prompts[:number]):
        rows = (owner == group).nonzero()[:, 0]
        scores = rewards.reward[rows].cpu()
        for kind, place in (("best", int(scores.argmax())), ("worst", int(scores.argmin()))):
            row = int(rows[place])
            lines.append(
                {
                    "step": step,
                    "group": group,
                    "kind": kind,
                    "query": prompt.query,
                    "response": prompt.source,
                    "target": [round(x, 4) for x in prompt.target.tolist()],
                    "rewrite": rewrites[row],
                    "reward": float(rewards.reward[row]),
                    "cosine": float(rewards.cosine[row]),
                    "fwd": float(rewards.consistency.fwd[row]),
                    "bwd": float(rewards.consistency.bwd[row]),
                    "finished": bool(rollouts.finished[row]),
                }
            )
    with (folder / NAME).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
