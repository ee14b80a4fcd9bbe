"""Reward scores in CUDA (csrc/cuda/reward_scores.cu)."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from visa_kernels import cuda_library
from visa_kernels.reward_scores.job import Job


def reward_scores(**arguments: Any) -> tuple[Tensor, Tensor]:
    """(scores [7, B], bits [B] uint8), as the reference; see `op.reward_scores`."""
    job = Job(**arguments)
    cuda_library.launch(
        "visa_reward_scores",
        (ctypes.c_char_p, ctypes.c_int),
        job.scores.device,
        job.packed,
        _lanes(job.size),
    )
    return job.scores, job.bits


def _lanes(group_size: int) -> int:
    """Lanes of a warp that share a group: no more than it has rows; 32 without a known size."""
    return 8 if 0 < group_size <= 8 else 16 if 0 < group_size <= 16 else 32
