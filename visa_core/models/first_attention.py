"""Attention of each row's first token alone, for what a classifier reads of the last layer."""

from __future__ import annotations

import math

import torch

from visa_core.models.packed_rows import PackedRows


def first_token_attention(
    q_BHd: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor, rows: PackedRows
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v of one query a row over that row's keys, [B, H, d].

    In q's type, computed in float32; not differentiable. Sums run row by row, so that no order of
    threads decides them.
    """
    lengths_B = rows.cu_seqlens.diff()

    def reduced(x: torch.Tensor, how: str) -> torch.Tensor:
        return torch.segment_reduce(x, how, lengths=lengths_B, axis=0, unsafe=True)

    row_N = rows.row_N
    scores_NH = (q_BHd.float()[row_N] * k_NHd).sum(-1).mul_(1 / math.sqrt(q_BHd.shape[-1]))
    weights_NH = (scores_NH - reduced(scores_NH, "max")[row_N]).exp_()
    sums_BHd = reduced(weights_NH[..., None] * v_NHd, "sum")
    return (sums_BHd / reduced(weights_NH, "sum")[..., None]).to(q_BHd.dtype)
