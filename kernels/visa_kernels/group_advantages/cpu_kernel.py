"""Group advantages on the C++ extension: addresses and sizes; computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = {"group": 1, "batch": 2, "none": 3}


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor | None,
    mask: Tensor | None,
    group_size: int,
    scale: str,
    eps: float,
) -> Tensor:
    """Advantages [B]; float64 for float64 rewards, otherwise float32."""
    from visa_kernels import _C

    raw = rewards.to(torch.float64).contiguous()
    ids = None if group_ids is None else group_ids.to(torch.int64).contiguous()
    mask = None if mask is None else mask.contiguous()
    out = torch.empty(len(raw), dtype=torch.float64)
    _C.group_advantages(
        raw.data_ptr(),
        0 if ids is None else ids.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        len(raw),
        group_size,
        SCALES[scale],
        eps,
        out.data_ptr(),
    )
    return out if rewards.dtype == torch.float64 else out.to(torch.float32)
