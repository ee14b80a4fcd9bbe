"""How many tokens are taken through the head at a time."""

from __future__ import annotations

import torch
from torch import Tensor

BYTES = {"cpu": 64 * 2**20, "cuda": 768 * 2**20}
"""What a chunk of logits may take where memory is free."""

MOST_TOKENS = {"cpu": 512, "cuda": 1 << 30}
LEAST_TOKENS = {"cpu": 32, "cuda": 256}
MULTIPLE = {"cpu": 16, "cuda": 128}


def chunk_tokens(tokens: int, weight_VD: Tensor, itemsize: int) -> int:
    """Tokens of a chunk, at least 1: as even a split of `tokens` as the budget of bytes allows.

    Large chunks are better: each reads the weight and reads and writes the float32 dweight once
    (8 * V * D bytes against 6 * n * V * D operations), so that a GPU wants thousands of tokens, a
    CPU hundreds. No chunk worth a GEMM fits into a cache: the caches matter per row, which the row
    kernels read twice, and there a row of 128 KB stays in a core's L2 and the rows in flight stay
    in a GPU's. The budget is fixed and only ever halved, when free memory is short of 4 times it,
    so that a repeated run takes the same chunks and gives the same bits.
    """
    device = weight_VD.device
    kind = device.type if device.type in BYTES else "cpu"
    budget = BYTES[kind]
    free = _free_bytes(device)
    while budget * 4 > free and budget > 2**20:
        budget //= 2
    row = weight_VD.shape[0] * itemsize
    most = min(max(budget // max(row, 1), LEAST_TOKENS[kind]), MOST_TOKENS[kind])
    if tokens <= most:
        return max(tokens, 1)
    chunks = -(-tokens // most)
    even = -(-tokens // chunks)
    return min(-(-even // MULTIPLE[kind]) * MULTIPLE[kind], most)


def _free_bytes(device: torch.device) -> int:
    """Bytes that can be had: on a GPU those that torch's allocator holds unused count as free."""
    if device.type != "cuda":
        return 1 << 62
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def buffer(rows: int, weight_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a chunk's logits [rows, V]; on a GPU rows start at multiples of 64 elements.

    Tensor cores want aligned rows, and few vocabularies are so kind.
    """
    vocabulary = weight_VD.shape[0]
    if weight_VD.device.type == "cpu":
        return weight_VD.new_empty((rows, vocabulary), dtype=dtype)
    width = -(-vocabulary // 64) * 64
    return weight_VD.new_empty((rows, width), dtype=dtype)[:, :vocabulary]
