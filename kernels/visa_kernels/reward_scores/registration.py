"""The kernels of reward_scores behind one custom op, so that compiled and exported graphs keep it.

The op has no backward: no gradient flows to scores. `backend` of its schema names the kernel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.reward_scores.reference import OUTPUTS

PLAIN = (Tensor, torch.nn.Parameter)

_SCHEMA = (
    "(Tensor values, Tensor? value_rows, Tensor targets, "
    "Tensor fwd, Tensor? fwd_sentences, Tensor? fwd_chunks, Tensor? fwd_rows, "
    "Tensor bwd, Tensor? bwd_sentences, Tensor? bwd_chunks, Tensor? bwd_rows, "
    "Tensor? penalty, Tensor? worst, Tensor? cu_groups, Tensor? order, "
    "int group_size, int entailment, str activation, float limit, str form, str consistency, "
    "float w_val, float w_sem, float gate, float neutral_norm, float distance_weight, "
    "str non_finite, str scale, float eps, str backend) -> (Tensor, Tensor)"
)


@torch.library.custom_op("visa_kernels::reward_scores", mutates_args=(), schema=_SCHEMA)
def _reward_scores(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    named |= dict(zip(_NAMES, arguments, strict=False))
    return _run(named.pop("backend"))(**named)


@_reward_scores.register_fake
def _(values: Tensor, value_rows: Tensor | None, targets: Tensor, *_: Any, **__: Any) -> Any:
    rows = targets.shape[0]
    scores = values.new_empty((len(OUTPUTS), rows), dtype=torch.float32)
    return scores, values.new_empty(rows, dtype=torch.uint8)


_NAMES = tuple(part.split()[-1] for part in _SCHEMA[1 : _SCHEMA.index(")")].split(", "))


def _kernel(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(**named: Any) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() or type(named["values"]) not in PLAIN:
            return _reward_scores(**named, backend=name)
        # torch's wrapper of operators, which only graphs and subclasses need, takes longer than a
        # short batch: it reads the schema once per argument.
        return _run(name)(**named)

    return run


@cache
def _run(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    return importlib.import_module(f"visa_kernels.reward_scores.{backend}_kernel").reward_scores


def kernels() -> list[backends.Backend]:
    """All backends but the reference, best first: `cuda` until both were measured on a GPU."""
    return [
        backends.cpu_backend(_kernel("cpu")),
        backends.cuda_backend(_kernel("cuda")),
        backends.triton_backend(_kernel("triton")),
    ]
