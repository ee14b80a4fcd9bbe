"""Liger-Kernel's GRPO: chunked fused linear, and Triton on logits.

Differences of definition to ours:

- rows are padded, [B, T, D] with a mask, where ours are packed; `chunk_size` rows at a time
- gspo is loss_type "grpo" with importance_sampling_level "sequence"
- cispo's `epsilon_high` is the cap of the ratio itself; ours is 1 + clip_high, open below
- without `old_per_token_logps` the ratio is 1
- logprobs are rounded to the hidden's dtype on return from the head in low precision
- metrics are the KL and the clip fraction alone
- log-ratios are not cut; ours are at +-20
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.peers import installed


def why_not() -> str | None:
    """None where Liger's chunked losses can be imported."""
    return installed.why_not(installed.LIGER, "liger_kernel.chunked_loss")


def why_no_triton() -> str | None:
    """None where Liger's Triton losses can be imported and a CUDA device runs them."""
    if not torch.cuda.is_available():
        return "Liger's Triton kernel needs a GPU"
    return installed.why_not(installed.LIGER, "liger_kernel.transformers.grpo_loss")


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    ref_logprobs: Tensor | None = None,
    kl_beta: float = 0.0,
    importance_ratio: Tensor | None = None,
    delta: float | None = None,
    max_length: int | None = None,
    items: float | Tensor | None = None,
    compiled: bool = False,
    chunk_rows: int = 1,
) -> Tensor:
    """`LigerFusedLinearGRPOLoss` on hidden [B, T, D], ids, old_logprobs, mask [B, T].

    Gradients are computed in the forward pass, chunk by chunk of rows; the head recomputes logits
    per vocabulary chunk, 8 * B * T * D * V FLOPs in all.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    module = LigerFusedLinearGRPOLoss(
        beta=kl_beta,
        compiled=compiled,
        use_ref_model=kl_beta != 0,
        chunk_size=chunk_rows,
        temperature=temperature,
        delta=delta,
        max_completion_length=max_length,
        **_of_loss_type(loss_type, clip_low, clip_high),
    )
    result, _ = module(
        hidden,
        weight,
        ids,
        mask,
        advantages,
        bias=bias,
        ref_per_token_logps=ref_logprobs,
        old_per_token_logps=old_logprobs,
        vllm_is_ratio=importance_ratio,
        num_items_in_batch=items,
    )
    return result


def logits_loss(
    logits: Tensor,
    ids: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    temperature: float = 1.0,
    max_length: int | None = None,
) -> Tensor:
    """`triton_grpo_loss` on logits [B, T + 1, V], whose last step is not used; GPU alone."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    options = _of_loss_type(loss_type, clip_low, clip_high)
    result, _ = triton_grpo_loss(
        logits,
        old_logprobs,
        None,
        ids,
        advantages,
        mask,
        temperature,
        0.0,
        options["epsilon_low"],
        options["epsilon_high"],
        inplace=False,
        loss_type=options["loss_type"],
        importance_sampling_level=options["importance_sampling_level"],
        max_completion_length=max_length,
        reduce=True,
    )
    return result


def _of_loss_type(loss_type: str, clip_low: float, clip_high: float) -> dict[str, Any]:
    sequence = loss_type == "gspo"
    return {
        "loss_type": "grpo" if sequence else loss_type,
        "importance_sampling_level": "sequence" if sequence else "token",
        "epsilon_low": clip_low,
        "epsilon_high": 1 + clip_high if loss_type == "cispo" else clip_high,
    }
