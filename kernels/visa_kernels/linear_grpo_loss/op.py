"""Policy loss from hidden states: logprobs, loss and gradients in one pass over the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.group_advantages.op import group_advantages
from visa_kernels.grpo_loss import checks as loss_checks
from visa_kernels.grpo_loss.op import CORRECTIONS, counted_tokens, loss_normalizer
from visa_kernels.linear_grpo_loss import kernel_path, reference
from visa_kernels.linear_logprobs import checks
from visa_kernels.linear_logprobs.op import in_autocast_type, kernels


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    old_logprobs: Tensor | None = None,
    advantages: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    rewards: Tensor | None = None,
    group_size: int | None = None,
    group_ids: Tensor | None = None,
    advantage_scale: str = "group",
    advantage_eps: float = 1e-4,
    reward_mask: Tensor | None = None,
    loss_type: str = "dapo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    normalizer: float | Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_beta: float = 0.0,
    sampler_logprobs: Tensor | None = None,
    sampler_correction: str = "none",
    sequence_weight: str = "product",
    correction_low: float = 0.0,
    correction_cap: float = 2.0,
    mask: Tensor | None = None,
    accumulate_into: Tensor | None = None,
    metrics_for_skipped: bool = True,
    skip_rows: bool = True,
    chunk_tokens: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`grpo_loss` of `linear_logprobs`: loss to minimise, a scalar, and detached metrics.

    hidden, weight, ids, bias, temperature, softcap  as `linear_logprobs` takes them; ids at masked
        tokens may be anything
    old_logprobs ... mask  as `grpo_loss` takes them; the metrics are its metrics, entropy included.
                         No old_logprobs: the old policy is the current one, as in the first update
                         of a step; the ratio is 1 and no pass is needed to learn its logprobs.
                         Sampler corrections of whole rows, and those of tokens under gspo, still
                         need them first: 8 D V

    accumulate_into      [V, D] float32, contiguous, such as the weight's float32 .grad: dweight is
                         added to it by this call, with no second [V, D] in memory, and weight
                         itself gets no gradient. The loss must then be differentiated with
                         gradient 1 (a RuntimeError says so): put factors into `normalizer`
    metrics_for_skipped  False leaves rows of zero advantage without KL out of the metrics, and
                         their logits are never made. True needs their logprobs
    skip_rows            False takes every token through everything: no host sync on a GPU
    chunk_tokens         tokens whose logits are in memory at once; None: chosen from the size of V
                         and the free memory (`linear_logprobs.chunks`)
    backend              reference, chunked (plain torch, chunk by chunk), cpu or triton

    The gradients are made in the forward pass, where all that they depend on is known; backward
    scales them. Those that nothing asks for (hidden or weight frozen, no_grad) are not made.
    Differentiable once, in hidden, weight and bias.

    FLOPs: 6 D V for a token with a gradient, where other code needs 8; 2 D V for one whose logprob
    the metrics want (advantage 0 and no KL); none for masked ones. Tokens without a gradient are
    left out exactly: all are sorted once, which costs a GPU the op's one host sync; those that turn
    out to be clipped are left out of the gradient products on a CPU and stay in, as rows of zeros,
    on a GPU, where to count them in each chunk would cost a sync each. gspo clips whole rows, so it
    needs all logprobs first: 8 D V, and clipped rows are left out of the last 6 on a GPU too, for a
    second sync.

    Memory beside the gradients: one chunk of logits; [V, D] in float32, in which dweight is summed,
    where weight is not float32 and accumulate_into is not given.

    Raises ValueError as `linear_logprobs` and `grpo_loss` do, and for an accumulate_into that does
    not fit.
    """
    scores = loss_checks.scores_of(advantages, rewards)
    loss_checks.check_names(
        loss_type, sampler_correction, sequence_weight, rewards, advantage_scale, CORRECTIONS
    )
    loss_checks.check_needs(sampler_correction, sampler_logprobs, kl_beta, ref_logprobs)
    loss_checks.check_bounds(loss_type, clip_dual, correction_low, correction_cap)
    if cu_seqlens is None:
        raise ValueError("linear_grpo_loss needs cu_seqlens, [B + 1]")
    checks.check_head(hidden, weight, ids, bias, temperature, softcap, chunk_tokens)
    checks.check_accumulate_into(accumulate_into, weight)
    per_token = {
        "old_logprobs": old_logprobs,
        "ref_logprobs": ref_logprobs,
        "sampler_logprobs": sampler_logprobs,
        "mask": mask,
    }
    scores_name = "advantages" if rewards is None else "rewards"
    loss_checks.check_shapes(hidden[:, 0], cu_seqlens, {scores_name: scores}, per_token)
    loss_checks.check_groups(rewards, group_size, group_ids, reward_mask)
    loss_checks.check_values(scores, cu_seqlens, len(hidden), "given", None)
    checks.check_ids(ids, len(weight), mask)
    if rewards is not None:
        advantages = _advantages(
            rewards, group_size, group_ids, advantage_scale, advantage_eps, reward_mask
        )
    if normalizer is None:
        normalizer = loss_normalizer(loss_type, counted_tokens(cu_seqlens, mask))
    hidden, weight = in_autocast_type(hidden, weight)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    run = backends.choose("linear_grpo_loss", hidden.device.type, backend, dtype)
    return run(
        hidden,
        weight,
        ids.long() if mask is None else ids.long().where(mask.bool(), 0),
        old_logprobs,
        advantages,
        cu_seqlens,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        accumulate_into=accumulate_into,
        metrics_for_skipped=metrics_for_skipped,
        skip_rows=skip_rows,
        chunk_tokens=chunk_tokens,
        loss_type=loss_type,
        clip_low=clip_low,
        clip_high=clip_high,
        clip_dual=clip_dual,
        normalizer=normalizer,
        ref_logprobs=ref_logprobs,
        kl_beta=kl_beta,
        sampler_logprobs=sampler_logprobs,
        sampler_correction=sampler_correction,
        sequence_weight=sequence_weight,
        correction_low=correction_low,
        correction_cap=correction_cap,
        mask=mask,
    )


def _advantages(
    rewards: Tensor,
    group_size: int | None,
    group_ids: Tensor | None,
    scale: str,
    eps: float,
    reward_mask: Tensor | None,
) -> Tensor:
    """Group advantages; on a GPU a reward that is not finite makes the loss NaN, without a sync."""
    return group_advantages(
        rewards,
        group_ids,
        scale,
        eps,
        group_size=group_size,
        mask=reward_mask,
        check="raise" if rewards.device.type == "cpu" else "nan",
    )


backends.register(
    "linear_grpo_loss",
    *kernels(kernel_path.run_on),
    backends.Backend(name="reference", function=reference.linear_grpo_loss),
)
