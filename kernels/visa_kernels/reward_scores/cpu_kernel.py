"""Reward scores in C++ (csrc/cpu/simd/reward_scores.cpp)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visa_kernels import _C
from visa_kernels.reward_scores.job import Job


def reward_scores(**arguments: Any) -> tuple[Tensor, Tensor]:
    """(scores [7, B], bits [B] uint8), as the reference; see `op.reward_scores`."""
    job = Job(**arguments)
    _C.reward_scores(job.packed)
    return job.scores, job.bits
