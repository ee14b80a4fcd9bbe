"""The three matrix products of a loss head, each into memory that already exists."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels import packed_gemm

BLOCK_OF_VOCABULARY = 4096
"""Rows of dweight that a CPU computes at a time in 16 bits, before they are added in float32."""


def logits(hidden_nD: Tensor, weight_VD: Tensor, out_nV: Tensor) -> None:
    """out = hidden @ weight.T, in the inputs' type with float32 sums."""
    if packed_gemm.is_faster(hidden_nD):
        packed_gemm.multiply(out_nV, hidden_nD, weight_VD.t())
    else:
        torch.mm(hidden_nD, weight_VD.t(), out=out_nV)


def hidden_gradient(dlogits_nV: Tensor, weight_VD: Tensor, out_nD: Tensor) -> None:
    """out = dlogits @ weight."""
    if packed_gemm.is_faster(dlogits_nV):
        packed_gemm.multiply(out_nD, dlogits_nV, weight_VD)
    else:
        torch.mm(dlogits_nV, weight_VD, out=out_nD)


def add_weight_gradient(
    dweight_VD: Tensor, dlogits_nV: Tensor, hidden_nD: Tensor, alpha: float, beta: int
) -> None:
    """dweight = beta * dweight + alpha * dlogits.T @ hidden, dweight in float32; beta is 0 or 1.

    On a GPU 16-bit operands are multiplied as they are and added to float32 by the GEMM itself. No
    CPU library offers that: there a block of rows is rounded to 16 bits once per chunk (which is
    what torch does to the whole gradient) and added in float32.
    """
    if packed_gemm.is_faster(dlogits_nV):
        packed_gemm.multiply(dweight_VD, dlogits_nV.t(), hidden_nD, alpha=alpha, beta=beta)
    elif dlogits_nV.dtype == torch.float32:
        torch.addmm(
            dweight_VD, dlogits_nV.t(), hidden_nD, beta=beta, alpha=alpha, out=dweight_VD
        )
    elif dlogits_nV.device.type == "cuda":
        torch.addmm(
            dweight_VD,
            dlogits_nV.t(),
            hidden_nD,
            beta=beta,
            alpha=alpha,
            out_dtype=torch.float32,
            out=dweight_VD,
        )
    else:
        _add_in_blocks(dweight_VD, dlogits_nV, hidden_nD, alpha, beta)


def _add_in_blocks(
    dweight_VD: Tensor, dlogits_nV: Tensor, hidden_nD: Tensor, alpha: float, beta: int
) -> None:
    rows = min(BLOCK_OF_VOCABULARY, len(dweight_VD))
    buffer = hidden_nD.new_empty(rows, hidden_nD.shape[1])
    for target, part in zip(
        dweight_VD.split(rows), dlogits_nV.split(rows, dim=1), strict=True
    ):
        block = buffer[: len(target)]
        torch.mm(part.t(), hidden_nD, out=block)
        if beta == 0:
            target.copy_(block)
            target.mul_(alpha)
        else:
            target.add_(block, alpha=alpha)
