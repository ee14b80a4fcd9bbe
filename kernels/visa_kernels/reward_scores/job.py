"""Arguments of the C++ and CUDA kernels: RewardJob of csrc/cpu/reward_terms.h, as bytes."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from visa_kernels import ticket
from visa_kernels.dtypes import CODES
from visa_kernels.reward_scores.reference import OUTPUTS

_LAYOUT = struct.Struct("=18Q21q7d")
_ACTIVATIONS = {"none": 0, "clamp": 1, "tanh": 2}
_FORMS = {"sum": 0, "product": 1, "gated": 2}
_CONSISTENCIES = {"geometric": 0, "min": 1, "published": 2}
_SCALES = {"group": 0, "batch": 1, "none": 2}
_WHOLE = (
    "value_rows", "fwd_sentences", "fwd_chunks", "fwd_rows", "bwd_sentences", "bwd_chunks",
    "bwd_rows",
)  # fmt: skip
_NUMBERS = ("limit", "w_val", "w_sem", "gate", "neutral_norm", "distance_weight", "eps")


class Job:
    """One call: `packed` goes to the kernel, which fills `scores` [7, B] and `bits` [B].

    Keeps the tensors that it points to alive.
    """

    def __init__(
        self,
        *,
        values: Tensor,
        targets: Tensor,
        fwd: Tensor,
        bwd: Tensor,
        penalty: Tensor | None,
        worst: Tensor | None,
        cu_groups: Tensor | None,
        order: Tensor | None,
        group_size: int,
        entailment: int,
        activation: str,
        form: str,
        consistency: str,
        non_finite: str,
        scale: str,
        **others: Any,
    ) -> None:
        rows, dims = targets.shape
        self.rows, self.size = rows, group_size
        self.scores = torch.empty(len(OUTPUTS), rows, dtype=torch.float32, device=values.device)
        self.bits = torch.empty(rows, dtype=torch.uint8, device=values.device)
        values, fwd, bwd, targets = (
            x if x.ndim == 1 or x.stride(1) == 1 else x.contiguous()
            for x in (values, _known(fwd), _known(bwd), targets.to(torch.float32))
        )
        whole = [_as(others[name], torch.int64) for name in _WHOLE]
        ends = _as(cu_groups, torch.int64)
        arrived = None
        if scale == "batch" and values.is_cuda:
            arrived = ticket.counters(values.device)
        self.tensors = [
            values, fwd, bwd, targets, *whole, _as(penalty, torch.float32),
            _as(worst, torch.bool), ends, _as(order, torch.int64), self.scores, self.bits, arrived,
        ]  # fmt: skip
        # Without groups, runs of 32 rows: as many as a warp has lanes.
        self.groups = -(-rows // (group_size or 32)) if ends is None else len(ends) - 1
        self.packed = _LAYOUT.pack(
            *(0 if x is None else x.data_ptr() for x in self.tensors),
            rows,
            self.groups,
            group_size or 32,
            dims,
            *(x.stride(0) for x in (values, targets, fwd, bwd)),
            *(x.shape[1] if x.ndim == 2 else 0 for x in (fwd, bwd)),
            *(CODES[x.dtype] for x in (values, fwd, bwd)),
            entailment,
            _ACTIVATIONS[activation],
            _FORMS[form],
            _CONSISTENCIES[consistency],
            _SCALES[scale],
            non_finite == "worst",
            ends is not None or group_size > 0,
            torch.get_num_threads(),
            *(others[name] for name in _NUMBERS),
        )


def _known(x: Tensor) -> Tensor:
    return x if x.dtype in CODES else x.to(torch.float32)


def _as(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor itself where it has that type and is contiguous."""
    return None if x is None else x.to(dtype).contiguous()
