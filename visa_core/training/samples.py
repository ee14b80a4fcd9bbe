"""Rewrites of a run, kept in samples.jsonl of its folder: what the figures of a step look like."""

from __future__ import annotations

import json
from pathlib import Path

from visa_core.training.experience import Experience

NAME = "samples.jsonl"


def write_samples(folder: Path, step: int, number: int, batch: Experience) -> None:
    """Append the best and the worst rewrite of the step's first `number` prompts, one line each."""
    prompts, rollouts, rewards = batch.prompts, batch.rollouts, batch.rewards
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
                    "rewrite": batch.rewrites[row],
                    "reward": float(rewards.reward[row]),
                    "cosine": float(rewards.cosine[row]),
                    "fwd": float(rewards.consistency.fwd[row]),
                    "bwd": float(rewards.consistency.bwd[row]),
                    "finished": bool(rollouts.finished[row]),
                }
            )
    with (folder / NAME).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
