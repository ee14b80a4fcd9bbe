"""Group advantages of a step's rewards: groups of one size, and ids in any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench import ours
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import group_advantages

EPS = 1e-4


def case(prompts: int, group: int, *, shuffled: bool = False, **about: Any) -> Case:
    """`group` completions for each of `prompts` prompts; shuffled rows come with their ids."""
    rows = prompts * group

    def build(device: str) -> Inputs:
        ids = torch.arange(prompts, device=device).repeat_interleave(group)
        order = torch.randperm(rows, device=device) if shuffled else slice(None)
        return {
            "rewards": torch.rand(rows, device=device),
            "ids": ids[order] if shuffled else None,
            "size": None if shuffled else group,
        }

    name = f"{prompts}x{group}{' by id' if shuffled else ''}"
    moved = (4 + 4 + (8 if shuffled else 0)) * rows
    return Case(name=name, build=build, bytes_moved=moved, graph=not shuffled, **about)


def backend(name: str) -> Provider:
    """One of ours, without the check for rewards that are not finite, which the others lack."""
    return lambda inputs: group_advantages(
        inputs["rewards"],
        inputs["ids"],
        group_size=inputs["size"],
        check="nan",
        backend=name,
    )


def eager(rewards: Tensor, ids: Tensor | None, size: int | None) -> Tensor:
    """As one would write it: a view for groups of one size, index_add for ids."""
    if size is not None:
        groups = rewards.view(-1, size)
        centred = groups - groups.mean(1, keepdim=True)
        return (centred / (groups.std(1, keepdim=True) + EPS)).flatten()
    _, index, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    zeros = torch.zeros(len(counts), dtype=rewards.dtype, device=rewards.device)
    centred = rewards - (zeros.index_add(0, index, rewards) / counts)[index]
    variance = zeros.index_add(0, index, centred.square()) / (counts - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + EPS)


def exact(inputs: Inputs) -> Tensor:
    return eager(inputs["rewards"].double(), inputs["ids"], inputs["size"])


def no_shuffled_compile(provider: str, case: Case, device: str) -> str | None:
    if provider == "compile" and "by id" in case.name:
        return "torch.unique has no static shape to compile for"
    return ours.skip("group_advantages")(provider, case, device)


compiled = torch.compile(eager, dynamic=False)

register(
    Op(
        name="group_advantages",
        cases=(
            case(16, 8),
            case(512, 8, headline=True),
            case(512, 64),
            case(512, 8, shuffled=True),
        ),
        providers={
            "reference": backend("reference"),
            "eager": lambda i: eager(i["rewards"], i["ids"], i["size"]),
            "compile": lambda i: compiled(i["rewards"], i["ids"], i["size"]),
            **{name: backend(name) for name in ours.names("group_advantages")},
        },
        exact=exact,
        rtol=1e-6,
        atol=1e-7,
        skip=no_shuffled_compile,
    )
)
