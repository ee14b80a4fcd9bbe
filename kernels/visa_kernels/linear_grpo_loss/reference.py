"""Policy loss from hidden states in plain torch, all logits at once: the specification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visa_kernels.grpo_loss.op import grpo_loss
from visa_kernels.linear_logprobs.reference import linear_logprobs


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    cu_seqlens: Tensor,
    *,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    accumulate_into: Tensor | None,
    metrics_for_skipped: bool,
    mask: Tensor | None,
    skip_rows: bool,
    chunk_tokens: int | None,
    **settings: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics; see `op.linear_grpo_loss`. skip_rows and chunk_tokens change speed alone.
    """
    if accumulate_into is not None:
        weight = weight.detach().requires_grad_()
    if mask is not None:
        hidden = torch.where(mask.bool().unsqueeze(-1), hidden, 0.0)
    if not metrics_for_skipped:
        mask = measured_mask(advantages, cu_seqlens, len(hidden), mask, settings["kl_beta"])
    with torch.set_grad_enabled(torch.is_grad_enabled() or accumulate_into is not None):
        logprobs, entropy = linear_logprobs(hidden, weight, ids, bias, temperature, softcap)
        loss, metrics = grpo_loss(
            logprobs,
            logprobs.detach() if old_logprobs is None else old_logprobs,
            advantages,
            cu_seqlens,
            entropy=entropy.detach(),
            mask=mask,
            backend="reference",
            **settings,
        )
    if accumulate_into is not None:
        (dweight,) = torch.autograd.grad(loss, weight, retain_graph=True)
        accumulate_into.add_(dweight)
    return loss, metrics


def measured_mask(
    advantages: Tensor, cu_seqlens: Tensor, tokens: int, mask: Tensor | None, kl_beta: float
) -> Tensor:
    """Counted tokens of rows that have something to learn, bool [T]: an advantage, or the KL."""
    lengths = cu_seqlens.diff()
    learns_B = torch.ones_like(advantages, dtype=torch.bool) if kl_beta else advantages != 0
    learns_T = learns_B.repeat_interleave(lengths, output_size=tokens)
    return learns_T if mask is None else learns_T & mask.bool()
