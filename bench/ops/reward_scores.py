"""Reward scores: the heads' outputs of a step's completions to rewards and advantages."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from bench import ours
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import reward_scores

DIMS, LABELS, GROUP = 10, 3, 8
SETTINGS = {
    "group_size": GROUP,
    "activation": "clamp",
    "neutral_norm": 0.25,
    "distance_weight": 0.1,
}


def case(rows: int, dtype: str) -> Case:
    """`rows` completions, 8 per prompt: raw detector values, both directions' logits."""

    def build(device: str) -> Inputs:
        kind = getattr(torch, dtype)
        return {
            "values": torch.randn(rows, DIMS, device=device).to(kind),
            "targets": torch.rand(rows, DIMS, device=device) * 2 - 1,
            "fwd": (torch.randn(rows, LABELS, device=device) * 3).to(kind),
            "bwd": (torch.randn(rows, LABELS, device=device) * 3).to(kind),
            "penalty": torch.rand(rows, device=device) * 0.1,
            "worst": torch.rand(rows, device=device) < 0.05,
        }

    size = getattr(torch, dtype).itemsize
    moved = rows * ((DIMS + 2 * LABELS) * size + 4 * DIMS + 4 + 1 + 7 * 4 + 1)
    return Case(
        name=f"B={rows}" + ("" if dtype == "float32" else f",{dtype}"),
        build=build,
        bytes_moved=moved,
        dtype=dtype,
        graph=True,
        headline=rows == 4096,
    )


def written_out(
    values: Tensor, targets: Tensor, fwd: Tensor, bwd: Tensor, penalty: Tensor, worst: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in torch, as one would write it for this form alone: reward, advantage, cosine."""
    kind = torch.float64 if values.dtype == torch.float64 else torch.float32
    v, t = values.to(kind).clamp(-1, 1), targets.to(kind)
    norm = torch.linalg.vector_norm(v, dim=-1)
    cosine = torch.nn.functional.cosine_similarity(v, t, dim=-1, eps=1e-8)
    p, q = (x.to(kind).softmax(-1)[:, 0] for x in (fwd, bwd))
    reward = torch.where(norm < SETTINGS["neutral_norm"], 0.0, cosine) + (p * q).sqrt()
    distance = torch.linalg.vector_norm(v - t, dim=-1)
    reward = (reward - SETTINGS["distance_weight"] * distance - penalty.to(kind)).clamp(min=-1.0)
    reward = reward.masked_fill(worst, -1.0)
    groups = reward.view(-1, GROUP)
    centred = groups - groups.mean(-1, keepdim=True)
    return reward, (centred / (groups.std(-1, keepdim=True) + 1e-4)).view(-1), cosine


def eager(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    return written_out(**inputs)


@functools.cache
def compiled() -> Any:
    return torch.compile(written_out, fullgraph=True)


def exact(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    return written_out(
        **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    )


def provider(name: str) -> Provider:
    def run(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        found = reward_scores(**inputs, **SETTINGS, backend=name)
        return found.reward, found.advantage, found.cosine

    return run


register(
    Op(
        name="reward_scores",
        cases=tuple(
            case(rows, dtype) for rows in (128, 4096, 65536) for dtype in ("float32", "bfloat16")
        ),
        providers={
            "reference": provider("reference"),
            "eager": eager,
            "compile": lambda inputs: compiled()(**inputs),
            **{name: provider(name) for name in ours.names("reward_scores")},
        },
        exact=exact,
        rtol=1e-6,
        atol=1e-4,
        skip=ours.skip("reward_scores"),
    )
)
