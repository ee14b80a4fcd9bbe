"""A decoding step on the C++ extension, as a torch operator without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels.dtypes import CODES


@torch.library.custom_op("visa_kernels::shared_prefix_decode", mutates_args=())
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
    """out [S, H, D]. Fastest with the prompts' keys transposed in memory, token next to token."""
    from visa_kernels import _C

    q = q.contiguous()
    prompt_v, own_k, own_v = (
        x if x.stride(3) == 1 else x.contiguous() for x in (prompt_v, own_k, own_v)
    )
    prompts, owns, groups = (
        x.to(torch.int64).contiguous() for x in (prompt_lengths, own_lengths, group_of)
    )
    out = torch.empty_like(q)
    slots, heads, head_dim = q.shape
    _C.shared_prefix_decode(
        q.data_ptr(),
        *(_cached(x) for x in (prompt_k, prompt_v, own_k, own_v)),
        (slots, heads, prompt_k.shape[1], head_dim),
        len(prompt_k),
        prompt_k.shape[2],
        own_k.shape[2],
        prompts.data_ptr(),
        owns.data_ptr(),
        groups.data_ptr(),
        scale,
        CODES[q.dtype],
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out


@shared_prefix_decode.register_fake
def _(q: Tensor, *rest: Tensor | float) -> Tensor:
    return q.new_empty(q.shape)


def _cached(x: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), *x.stride()
