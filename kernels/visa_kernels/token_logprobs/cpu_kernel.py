"""token_logprobs on the C++ extension: addresses, sizes and strides; no autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels.dtypes import CODES


def forward(
    logits_TV: Tensor,
    ids_T: Tensor,
    temperature: float,
    logprobs_T: Tensor,
    entropy_T: Tensor,
    stats_2T: Tensor,
) -> None:
    """Fill log-probabilities, entropies (skipped when that is empty), shifts and log-sums."""
    from visa_kernels import _C

    rows, vocabulary = logits_TV.shape
    stats = stats_2T.data_ptr()
    _C.token_logprobs(
        logits_TV.data_ptr(),
        ids_T.data_ptr(),
        rows,
        vocabulary,
        logits_TV.stride(0),
        CODES[logits_TV.dtype],
        temperature,
        len(entropy_T) > 0,
        torch.get_num_threads(),
        logprobs_T.data_ptr(),
        entropy_T.data_ptr(),
        stats,
        stats + 4 * rows,
    )


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
    from visa_kernels import _C

    rows, vocabulary = logits_TV.shape
    stats = stats_2T.data_ptr()
    if dlogits_TV is not logits_TV:
        _C.advise_huge_pages(dlogits_TV.data_ptr(), dlogits_TV.nbytes)
    _C.token_logprobs_gradient(
        logits_TV.data_ptr(),
        dlogits_TV.data_ptr(),
        ids_T.data_ptr(),
        rows,
        vocabulary,
        logits_TV.stride(0),
        dlogits_TV.stride(0),
        CODES[logits_TV.dtype],
        temperature,
        torch.get_num_threads(),
        stats,
        stats + 4 * rows,
        entropy_T.data_ptr() if len(entropy_T) else 0,
        *(0 if grad is None else grad.data_ptr() for grad in grads),
    )
