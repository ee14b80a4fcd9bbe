"""`grpo_loss` in CUDA (csrc/cuda/grpo_loss.cu): one launch, advantages included."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from visa_kernels import cuda_library, ticket
from visa_kernels.grpo_loss.job import Job

SLOTS = 12
"""Sums that each block leaves."""
MAX_BLOCKS = 1056
"""8 blocks for each of 132 multiprocessors."""


def grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, scores: Tensor, cu_seqlens: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dloss/dlogprobs [N] and metrics, all float32; arguments as `Job` takes them."""
    rows, device = len(cu_seqlens) - 1, logprobs.device
    blocks = max(1, min(rows, MAX_BLOCKS))
    job = Job(
        logprobs,
        old_logprobs,
        scores,
        cu_seqlens,
        *others,
        scratch=torch.empty(SLOTS * blocks, dtype=torch.float32, device=device),
        counters=ticket.counters(device),
    )
    cuda_library.launch(
        "visa_grpo_loss",
        (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
        device,
        job.packed,
        blocks,
        _threads(len(logprobs), rows),
    )
    return job.results


def _threads(tokens: int, rows: int) -> int:
    """Threads of a block: about a quarter of a row's tokens, 128 to 512."""
    mean = tokens // max(rows, 1)
    return 128 if mean <= 512 else 256 if mean <= 1024 else 512
