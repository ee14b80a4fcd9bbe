"""Arguments of the C++ and CUDA kernels: GrpoJob of csrc/cpu/grpo_loss.h, as bytes."""

from __future__ import annotations

import struct
from functools import partial

import torch
from torch import Tensor

from visa_kernels.dtypes import CODES
from visa_kernels.grpo_loss import reference
from visa_kernels.grpo_loss.torch_op import METRICS

_LAYOUT = struct.Struct("=16Q16q8d")
_SURROGATES = {
    reference.clip_tokens: 0,
    reference.clip_sequences: 1,
    reference.clip_weights: 2,
}
_CORRECTIONS = {"none": 0, "token": 1, "product": 2, "geometric": 3}
DOUBLE_SCORES = 3
_SCALES = {"given": 0, "group": 1, "batch": 2, "none": 3}


class Job:
    """One call: `packed` goes to the kernel, which fills `results`: loss, dlogprobs [N], metrics.

    Keeps the tensors that it points to alive.
    """

    def __init__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        scores: Tensor,
        cu_seqlens: Tensor,
        normalizer: Tensor | None,
        ref_logprobs: Tensor | None,
        sampler_logprobs: Tensor | None,
        entropy: Tensor | None,
        mask: Tensor | None,
        group_ids: Tensor | None,
        reward_mask: Tensor | None,
        loss_type: str,
        divisor: float,
        clip_low: float,
        clip_high: float,
        clip_dual: float,
        kl_beta: float,
        sampler_correction: str,
        sequence_weight: str,
        correction_low: float,
        correction_cap: float,
        advantage_scale: str,
        advantage_eps: float,
        group_size: int,
        *,
        scratch: Tensor | None = None,
        counters: Tensor | None = None,
    ) -> None:
        new = partial(logprobs.new_empty, dtype=torch.float32)
        self.reward_mask = reward_mask
        self.results = (new(()), new(logprobs.numel()), new(len(METRICS)))
        loss, dlogprobs, metrics = self.results
        typed = [
            None if x is None else _plain(x)
            for x in (logprobs, old_logprobs, ref_logprobs, sampler_logprobs, entropy)
        ]
        wide = scores.dtype == torch.float64
        scores = scores.contiguous() if wide else _plain(scores)
        ids = None if group_ids is None else group_ids.to(torch.int64)
        self.tensors = [
            *typed, _bytes(mask), scores, None if ids is None else ids.contiguous(),
            _bytes(reward_mask), cu_seqlens.contiguous(),
            None if normalizer is None else normalizer.to(torch.float32),
            dlogprobs, loss, metrics, scratch, counters,
        ]  # fmt: skip
        kind = reference.LOSS_TYPES[loss_type]
        level = "token" if sampler_correction.startswith("token") else sequence_weight
        self.packed = _LAYOUT.pack(
            *[0 if x is None else x.data_ptr() for x in self.tensors],
            logprobs.numel(),
            cu_seqlens.numel() - 1,
            *[0 if x is None else CODES[x.dtype] for x in typed],
            DOUBLE_SCORES if wide else CODES[scores.dtype],
            cu_seqlens.dtype == torch.int64,
            _SCALES[advantage_scale],
            group_size,
            _SURROGATES[kind.surrogate],
            kind.row_mean,
            _CORRECTIONS["none" if sampler_correction == "none" else level],
            sampler_correction.endswith("mask"),
            torch.get_num_threads(),
            1.0 / divisor,
            1.0 - clip_low,
            1.0 + clip_high,
            clip_dual,
            kl_beta,
            correction_low,
            correction_cap,
            advantage_eps,
        )


def _plain(x: Tensor) -> Tensor:
    """Contiguous, of a type that the kernels read: float64 beside float32 logprobs is cast."""
    return (x if x.dtype in CODES else x.to(torch.float32)).contiguous()


def _bytes(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.bool).contiguous()
