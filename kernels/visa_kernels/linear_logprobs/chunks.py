"""How many tokens are taken through the head at a time."""

from __future__ import annotations

import torch
from torch import Tensor

BYTES = {"cpu": 64 * 2**20, "cuda": 768 * 2**20}
"""What a chunk of logits may take where memory is free."""

MOST_TOKENS = {"cpu": 1024, "cuda": 1 << 30}
LEAST_TOKENS = {"cpu": 32, "cuda": 256}
MULTIPLE = {"cpu": 16, "cuda": 128}

TILE = (128, 256)
"""Rows and columns of a GPU's usual tile of a matrix product."""

TOKENS_PER_CHUNK = 120
"""What one more chunk costs a GPU, in tokens: reading and writing dweight, 8 V D bytes, where a
token takes 6 V D operations and a byte the time of 180 of them; half of it overlaps."""


def chunk_tokens(tokens: int, weight_VD: Tensor, itemsize: int) -> int:
    """Tokens of a chunk, at least 1: what the budget of bytes allows and splits `tokens` well.

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
    most = _most_tokens(kind, budget, weight_VD.shape[0] * itemsize)
    if tokens <= most:
        return max(tokens, 1)
    if kind == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        return of_gpu(tokens, weight_VD.shape[1], most, processors)
    chunks, step = -(-tokens // most), MULTIPLE[kind]
    return min(-(-tokens // (chunks * step)) * step, most)


def of_gpu(tokens: int, hidden: int, most: int, processors: int) -> int:
    """The best chunk of at most `most` tokens for a GPU of so many multiprocessors."""
    choices = range(MULTIPLE["cuda"], most + 1, MULTIPLE["cuda"])
    return min(choices, key=lambda size: _cost(size, tokens, hidden, processors))


def rounds_filled(tokens: int, hidden: int, processors: int) -> float:
    """Tokens that the rounds of tiles of dlogits @ weight [tokens, hidden] have room for."""
    tiles = -(-tokens // TILE[0]) * -(-hidden // TILE[1])
    return -(-tiles // processors) * processors * TILE[0] * TILE[1] / hidden


def _most_tokens(kind: str, budget: int, row_bytes: int) -> int:
    return min(max(budget // max(row_bytes, 1), LEAST_TOKENS[kind]), MOST_TOKENS[kind])


def _cost(size: int, tokens: int, hidden: int, processors: int) -> float:
    """Time of chunks of `size`, in tokens, for what the choice changes.

    The product of dlogits and weight is only [size, D]: few tiles, so the last round of them over
    the multiprocessors may be nearly empty. It is a third of all work.
    """
    total = 0.0
    for start in range(0, tokens, size):
        count = min(size, tokens - start)
        room = rounds_filled(count, hidden, processors)
        total += count + max(room - count, 0.0) / 3 + TOKENS_PER_CHUNK
    return total


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
