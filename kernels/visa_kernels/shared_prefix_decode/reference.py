"""A decoding step in plain torch, each row with its own copy of the prompt: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def shared_prefix_decode(
    q: Tensor,
    prompt_k: Tensor,
    prompt_v: Tensor,
    prompt_lengths: Tensor,
    own_k: Tensor,
    own_v: Tensor,
    own_lengths: Tensor,
    group_of: Tensor,
    scale: float,
) -> Tensor:
    """out [S, H, D]; see `op.shared_prefix_decode`. Computed in float32, in float64 for float64."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    slots, heads, _ = q.shape
    keys, values = (
        torch.cat([prompt[group_of], own[:slots]], 2)
        .to(dtype)
        .repeat_interleave(heads // prompt.shape[1], 1)
        for prompt, own in ((prompt_k, own_k), (prompt_v, own_v))
    )
    seen_SK = torch.cat(
        [
            _places(prompt_k) < prompt_lengths[group_of, None],
            _places(own_k) < own_lengths[:, None],
        ],
        1,
    )[:, None]
    scores = torch.einsum("shd,shkd->shk", q.to(dtype) * scale, keys)
    weights = scores.masked_fill(~seen_SK, -torch.inf).softmax(-1).masked_fill(~seen_SK, 0.0)
    values = values.masked_fill(~seen_SK[..., None], 0.0)  # nothing was written there
    return torch.einsum("shk,shkd->shd", weights, values).to(q.dtype)


def _places(cache: Tensor) -> Tensor:
    return torch.arange(cache.shape[2], device=cache.device)
