"""Rows to score, and their scores in float64 from the formulas of `reward_scores`' docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from visa_kernels import Pieces, RewardScores, reward_scores

SCORES = ("reward", "cosine", "l2", "fwd", "bwd", "semantic")

RAGGED = {
    "size": dict(group_size=10),
    "long": dict(group_size=60),
    "ends": dict(cu_groups=torch.tensor([0, 1, 1, 7, 47, 60])),
    "ids": dict(group_ids=torch.tensor([7, -3, 40, 7, 7, 2] * 10)),
}


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def cosine(v: np.ndarray, t: np.ndarray) -> float:
    zero = [np.linalg.norm(x) <= 1e-8 for x in (v, t)]
    if any(zero):
        return float(all(zero))
    return float(np.clip(v @ t / np.linalg.norm(v) / np.linalg.norm(t), -1, 1))


def by_hand(inputs: dict[str, Any], b: int) -> dict[str, float]:
    """One row in float64, formulas written out from the docstring."""
    get = {"limit": 1.0, "w_val": 1.0, "w_sem": 1.0, "gate": 0.5, "neutral_norm": 0.0} | inputs
    v, t = (get[name][b].double().numpy() for name in ("values", "targets"))
    if get.get("activation") == "tanh":
        v = get["limit"] * np.tanh(v)
    if get.get("activation") == "clamp":
        v = np.clip(v, -get["limit"], get["limit"])
    f, w = (float(softmax(get[name][b].double().numpy())[1]) for name in ("fwd", "bwd"))
    kind = get.get("consistency", "geometric")
    semantic = {"geometric": math.sqrt(f * w), "min": min(f, w), "published": (2 * f + w) / 3}[kind]
    paid = cosine(v * (np.linalg.norm(v) >= get["neutral_norm"]), t)
    form = get.get("form", "sum")
    if form == "product":
        reward = ((1 + paid) / 2) ** get["w_val"] * semantic ** get["w_sem"]
    else:
        paid = paid if form == "sum" or semantic >= get["gate"] else -1.0
        reward = get["w_val"] * paid + get["w_sem"] * semantic
    l2 = float(np.linalg.norm(v - t))
    floor = 0.0 if form == "product" else -get["w_val"]
    reward -= get.get("distance_weight", 0.0) * l2 + float(get["penalty"][b])
    reward = floor if get["worst"][b] else max(reward, floor)
    return dict(reward=reward, cosine=cosine(v, t), l2=l2, fwd=f, bwd=w, semantic=semantic)


def advantage_by_hand(rewards: np.ndarray, groups: np.ndarray, scale: str, eps: float = 1e-4):
    """(r - mean) / (std + eps) row by row, in float64, from the rewards that were returned."""
    out = np.zeros(len(rewards))
    for row, group in enumerate(groups):
        own = rewards[groups == group]
        std = own.std(ddof=1) if len(own) > 1 else 0.0
        std = rewards.std(ddof=1) if scale == "batch" else std
        out[row] = (rewards[row] - own.mean()) / (1.0 if scale == "none" else std + eps)
    return out


def batch(rows: int, dims: int = 10, labels: int = 3) -> dict[str, Any]:
    """Random rows, among them zero values, zero targets, both, whispers, and texts set to worst."""
    values, targets = torch.randn(rows, dims), torch.randn(rows, dims)
    values[1::7], targets[2::7], values[3::14] = 0.0, 0.0, values[3::14] * 0.02
    targets[1::14] = 0.0
    return {
        "values": values,
        "targets": targets,
        "fwd": torch.randn(rows, labels) * 3,
        "bwd": torch.randn(rows, labels) * 3,
        "entailment": 1,
        "penalty": torch.rand(rows) * 0.2,
        "worst": torch.rand(rows) < 0.1,
    }


def run(inputs: dict[str, Any], backend: str, device: str, **options: Any) -> RewardScores:
    def moved(x: Any) -> Any:
        if isinstance(x, Pieces):
            return Pieces(*(moved(part) for part in x))
        return x.to(device) if isinstance(x, torch.Tensor) else x

    every = {name: moved(x) for name, x in (inputs | options).items()}
    found = reward_scores(**every, backend=backend)
    return RewardScores(*(None if x is None else x.cpu() for x in found))
