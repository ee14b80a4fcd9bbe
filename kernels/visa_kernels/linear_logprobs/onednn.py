"""The products of a loss head through oneDNN, where it is faster than torch's float32 products.

torch multiplies float32 matrices with MKL, which on AMD processors leaves the AVX-512 units unused
and runs at less than half of oneDNN's rate. oneDNN's linear, which torch has for compiled models,
writes into memory of its own and lays its weight out anew at each call: blocks of the vocabulary
keep both small. Sums are float32 here as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

BLOCK = 2048
"""Rows of the vocabulary taken at a time: their weights and a chunk's logits stay in cache."""
LEAST_TOKENS = 16
"""Fewer tokens than this do not pay for laying the weight out."""


def is_faster(x_nN: Tensor) -> bool:
    """Whether products with x, [tokens, ...], are to take this way."""
    return (
        x_nN.device.type == "cpu"
        and x_nN.dtype == torch.float32
        and len(x_nN) >= LEAST_TOKENS
        and why_not() is None
    )


@cache
def why_not() -> str | None:
    """None where oneDNN is the faster one on this processor, otherwise why not."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    for name in ("_linear_pointwise", "_reorder_linear_weight"):
        if not hasattr(torch.ops.mkldnn, name):
            return f"this torch lacks mkldnn::{name}"
    if not torch.backends.mkl.is_available():
        return "torch's own products are not MKL's"
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return "MKL uses this processor's widest units"
    return None


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def logits(hidden_nD: Tensor, weight_VD: Tensor, out_nV: Tensor) -> None:
    """out = hidden @ weight.T."""
    for rows in _blocks(len(weight_VD)):
        out_nV[:, rows] = _product(hidden_nD, weight_VD[rows])


def hidden_gradient(dlogits_nV: Tensor, weight_VD: Tensor, out_nD: Tensor) -> None:
    """out = dlogits @ weight."""
    sum_nD = torch.zeros_like(out_nD)
    for rows in _blocks(len(weight_VD)):
        sum_nD = torch.ops.mkldnn._linear_pointwise(
            dlogits_nV[:, rows], sum_nD, weight_VD[rows].t(), None, "add"
        )
    out_nD.copy_(sum_nD)


def add_weight_gradient(
    dweight_VD: Tensor, dlogits_nV: Tensor, hidden_nD: Tensor, alpha: float, beta: int
) -> None:
    """dweight = beta * dweight + alpha * dlogits.T @ hidden; beta is 0 or 1."""
    hidden_Dn = torch.ops.mkldnn._reorder_linear_weight(hidden_nD.t())  # once, not for each block
    for rows in _blocks(len(dweight_VD)):
        product = _product(dlogits_nV[:, rows].t(), hidden_Dn)
        if beta:
            dweight_VD[rows].add_(product, alpha=alpha)
        else:
            torch.mul(product, alpha, out=dweight_VD[rows])
        del product  # before the next one is made


def _product(x_mK: Tensor, weight_NK: Tensor) -> Tensor:
    """x @ weight.T [m, N], in new memory; the weight may be laid out already."""
    return torch.ops.mkldnn._linear_pointwise(x_mK, weight_NK, None, "none", [], "")


def _blocks(vocabulary: int) -> Iterator[slice]:
    for start in range(0, vocabulary, BLOCK):
        yield slice(start, min(start + BLOCK, vocabulary))
