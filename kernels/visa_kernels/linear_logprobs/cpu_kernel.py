"""Row kernels of a loss head in the C++ extension: addresses, sizes and strides; no autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visa_kernels.dtypes import CODES
from visa_kernels.linear_logprobs.head import Head, Stats


def statistics(product_nV: Tensor, ids_n: Tensor, head: Head, stats_n: Stats) -> None:
    """See `head.Rows.statistics`; ValueError for an id outside the vocabulary."""
    from visa_kernels import _C

    _C.head_statistics(*chunk_arguments(product_nV, ids_n, head, stats_n))


def gradient(
    product_nV: Tensor,
    ids_n: Tensor,
    head: Head,
    stats_n: Stats,
    dlogprobs_n: Tensor,
    dentropy_n: Tensor | None,
) -> None:
    """See `head.Rows.gradient`."""
    from visa_kernels import _C

    _C.head_gradient(
        *chunk_arguments(product_nV, ids_n, head, stats_n),
        dlogprobs_n.data_ptr(),
        address(dentropy_n),
    )


def chunk_arguments(
    product_nV: Tensor, ids_n: Tensor, head: Head, stats_n: Stats
) -> tuple[Any, ...]:
    """What every function over a chunk takes first; see csrc/cpu/linear_head.h."""
    rows, vocabulary = product_nV.shape
    return (
        product_nV.data_ptr(),
        rows,
        vocabulary,
        product_nV.stride(0),
        CODES[product_nV.dtype],
        ids_n.data_ptr(),
        address(head.bias),
        head.temperature,
        head.softcap,
        torch.get_num_threads(),
        stats_n.logprobs.data_ptr(),
        stats_n.entropy.data_ptr(),
        stats_n.shift.data_ptr(),
        stats_n.log_sum.data_ptr(),
    )


def address(tensor: Tensor | None) -> int:
    """Where a tensor's elements start; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
