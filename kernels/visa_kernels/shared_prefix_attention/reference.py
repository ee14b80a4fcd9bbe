"""Attention of completions that share a prompt in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels.packed_attention.reference import masked_attention, own_segment, segments


def shared_prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_groups: Tensor, scale: float
) -> Tensor:
    """out [N, H, D]; see `op.shared_prefix_attention`. Memory grows with N^2."""
    return masked_attention(q, k, v, visible(cu_seqlens, cu_groups, len(q)), scale)


def visible(cu_seqlens: Tensor, cu_groups: Tensor, n_tokens: int) -> Tensor:
    """Which tokens [N queries, N keys] see each other.

    A token sees its own segment up to itself, and one of a completion all of its group's prompt.
    """
    segment_N = segments(cu_seqlens, n_tokens)
    group_N = torch.searchsorted(cu_groups.to(torch.int64), segment_N, right=True) - 1
    prompt_N = cu_groups.to(torch.int64)[group_N]
    of_prompt_NN = segment_N[None, :] == prompt_N[:, None]
    is_completion_N = segment_N != prompt_N
    own_NN = own_segment(cu_seqlens, n_tokens, causal=True, window=-1)
    return own_NN | (of_prompt_NN & is_completion_N[:, None])
