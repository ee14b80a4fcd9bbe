"""token_logprobs in CUDA: addresses, sizes and strides for the library; no autograd."""

from __future__ import annotations

import functools
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from visa_kernels import cuda_library
from visa_kernels.dtypes import CODES

PART = 8192
"""Least number of logits that a block of threads is worth when a row is split."""
BLOCKS_PER_PROCESSOR = 4
FLOATS = 3
"""Of a part's statistics."""

FORWARD = (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int, c_float, c_int, *[c_void_p] * 5)
BACKWARD = (
    *[c_void_p] * 3, c_int64, c_int64, c_int64, c_int64, c_int, c_float, *[c_void_p] * 5,
)  # fmt: skip


def forward(
    logits_TV: Tensor,
    ids_T: Tensor,
    temperature: float,
    logprobs_T: Tensor,
    entropy_T: Tensor,
    stats_2T: Tensor,
) -> None:
    """Fill log-probabilities, entropies (skipped when that is empty), shifts and log-sums."""
    rows, vocabulary = logits_TV.shape
    stats = stats_2T.data_ptr()
    parts = parts_of(rows, vocabulary, processors(logits_TV.device))
    partial = stats_2T.new_empty(rows * parts * FLOATS) if parts > 1 else None
    cuda_library.launch(
        "visa_token_logprobs", FORWARD, logits_TV.device,
        logits_TV.data_ptr(), ids_T.data_ptr(), rows, vocabulary, logits_TV.stride(0),
        CODES[logits_TV.dtype], 1.0 / temperature, parts,
        None if partial is None else partial.data_ptr(), logprobs_T.data_ptr(),
        entropy_T.data_ptr() if len(entropy_T) else None, stats, stats + 4 * rows,
    )  # fmt: skip


def backward(
    logits_TV: Tensor,
    dlogits_TV: Tensor,
    ids_T: Tensor,
    temperature: float,
    entropy_T: Tensor,
    stats_2T: Tensor,
    grads: tuple[Tensor | None, Tensor | None],
) -> None:
    """Write the gradient of the logits to dlogits, which may be the logits themselves."""
    rows, vocabulary = logits_TV.shape
    stats = stats_2T.data_ptr()
    cuda_library.launch(
        "visa_token_logprobs_gradient", BACKWARD, logits_TV.device,
        logits_TV.data_ptr(), dlogits_TV.data_ptr(), ids_T.data_ptr(), rows, vocabulary,
        logits_TV.stride(0), dlogits_TV.stride(0), CODES[logits_TV.dtype], 1.0 / temperature,
        stats, stats + 4 * rows, entropy_T.data_ptr() if len(entropy_T) else None,
        *(None if grad is None else grad.data_ptr() for grad in grads),
    )  # fmt: skip


def parts_of(rows: int, vocabulary: int, processors: int) -> int:
    """Blocks per row: one where the rows fill the GPU, more where they do not."""
    wanted = -(-BLOCKS_PER_PROCESSOR * processors // rows)
    return max(1, min(wanted, vocabulary // PART))


@functools.cache
def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
