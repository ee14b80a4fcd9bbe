"""Policy loss of GRPO and its relatives on packed rows, with metrics of its health."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.group_advantages.reference import group_advantages as reference_advantages
from visa_kernels.grpo_loss import checks, reference, torch_op

LOSS_TYPES = tuple(reference.LOSS_TYPES)
CORRECTIONS = ("none", *reference.CORRECTIONS)
SEQUENCE_WEIGHTS = tuple(reference.SEQUENCE_WEIGHTS)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None = None,
    advantages: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
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
    entropy: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss to minimise, a scalar, and detached metrics.

    logprobs          [N] of the policy in training; the loss is differentiable in these alone, and
                      once: their gradient is made in the forward pass and scaled in the backward
    old_logprobs      [N] of the policy before this step's updates; None for the first of them,
                      when that policy is the one in training and every ratio is 1
    advantages        [B] one per row; or in place of them
    rewards           [B] one per row, with group_size, group_ids, advantage_scale, advantage_eps
                      and reward_mask (its mask) as `group_advantages` takes them
    cu_seqlens        [B + 1] int32 or int64, row b is tokens cu_seqlens[b] : cu_seqlens[b + 1]
    loss_type         grpo (arXiv:2402.03300), bnpo, dapo (arXiv:2503.14476), dr_grpo
                      (arXiv:2503.20783), gspo (arXiv:2507.18071) or cispo (arXiv:2506.13585)
    clip_low/high     the ratio is clipped to [1 - clip_low, 1 + clip_high]; cispo's authors leave
                      the low side open, which clip_low=1 does
    clip_dual         > 1: where the advantage is negative the ratio counts up to here, and has no
                      gradient beyond (dual clip, arXiv:1912.09729); TRL's `delta`. Not for cispo
    normalizer        what the sum is divided by. Pass `loss_normalizer` of the WHOLE step to each
                      of its micro-batches: 1 x N and N x 1 of them then give equal gradients.
                      None: this batch's own, right when it is the whole step
    ref_logprobs      [N] of the reference policy: adds kl_beta * k3 estimate of KL(policy || ref)
    sampler_logprobs  [N] as the sampler gave them. `sampler_correction` weights each token's term
                      (not the KL term) by w = exp(old - sampler), no gradient through it:
                      "token_truncate" by w cut to [correction_low, correction_cap],
                      "token_mask" by w inside that band and 0 outside,
                      "sequence_truncate" and "sequence_mask" the same with one w for the row: the
                      "product" of its tokens' (`sequence_weight`; TRL 1.16's modes of the same
                      names, verl's rollout_is="sequence"), or their "geometric" mean (what verl's
                      seq_mean_k1 rejects by). A row that is masked still counts in the normalizer
    entropy           [N] of the policy at each token, for the metric alone
    mask              [N] bool, False for tokens that do not count; what stands there has no effect

    Computed in float32 (float64 for float64 logprobs, by the reference alone). Log-ratios are cut
    at +-20, a row's log-weight after it is summed. Empty batches, empty rows and rows masked
    throughout add 0 to the loss. On a GPU: one launch and no host sync, where the normalizer is
    given or there is no mask; with group_ids of more than `triton_kernel.MAX_ROWS_BY_ID` rows, or
    groups above its MAX_GROUP, the advantages are a launch of their own. Inputs with strides are
    copied first.

    Metrics, over counted tokens: clip_low_frac, clip_high_frac (the clip acts there), kl_k1, kl_k3
    (estimates of KL(sampler || policy); the old policy stands in for an unknown sampler), ess
    (effective share of the sample, 1 where both agree), max_abs_dlogp; and where used ref_kl,
    entropy, correction_capped_frac (tokens whose w is outside the band). Without counted tokens all
    are 0.

    Raises ValueError for an unknown name, shapes that do not fit, and a missing argument that
    another one needs. On CPU it also checks that cu_seqlens rises from 0 to N and that rewards are
    finite; on a GPU that would cost a sync, and a reward that is not finite makes the loss NaN.
    """
    scores = checks.scores_of(advantages, rewards)
    checks.check_names(
        loss_type, sampler_correction, sequence_weight, rewards, advantage_scale, CORRECTIONS
    )
    checks.check_needs(sampler_correction, sampler_logprobs, kl_beta, ref_logprobs)
    checks.check_bounds(loss_type, clip_dual, correction_low, correction_cap)
    if cu_seqlens is None:
        raise ValueError("grpo_loss needs cu_seqlens, [B + 1]")
    if old_logprobs is None:
        old_logprobs = logprobs.detach()
    checks.check_shapes(
        logprobs,
        cu_seqlens,
        {"advantages" if rewards is None else "rewards": scores},
        {
            "old_logprobs": old_logprobs,
            "ref_logprobs": ref_logprobs,
            "sampler_logprobs": sampler_logprobs,
            "entropy": entropy,
            "mask": mask,
        },
    )
    checks.check_groups(rewards, group_size, group_ids, reward_mask)
    if normalizer is None:
        normalizer = _own_normalizer(loss_type, logprobs, cu_seqlens, mask)
    run = backends.choose("grpo_loss", logprobs.device.type, backend, logprobs.dtype)
    return run(
        logprobs,
        old_logprobs,
        scores,
        cu_seqlens,
        group_size=group_size,
        group_ids=group_ids,
        advantage_scale="given" if rewards is None else advantage_scale,
        advantage_eps=advantage_eps,
        reward_mask=reward_mask,
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
        entropy=entropy,
        mask=mask,
    )


def counted_tokens(cu_seqlens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tokens of each row that count, [B] int64."""
    if mask is None:
        return cu_seqlens.diff().long()
    before = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.long().cumsum(0)])
    return before[cu_seqlens.long()].diff()


def loss_normalizer(loss_type: str, lengths: Tensor, *, max_length: int | None = None) -> Tensor:
    """What the summed loss of a step is divided by, a float32 scalar of at least 1.

    lengths     [B] counted tokens of every row of the WHOLE step (see `counted_tokens`)
    max_length  the completion limit; dr_grpo needs it

    grpo, gspo         B: the mean over rows (of each row's mean over its tokens)
    dapo, bnpo, cispo  the number of tokens; bnpo differs from dapo only in counting those of a
                       micro-batch by itself, which is what calling it per micro-batch gives
    dr_grpo            B * max_length: a constant, so that long rows are not weighed down
    """
    checks.check_loss_type(loss_type)
    if loss_type == "dr_grpo":
        if max_length is None or max_length < 1:
            raise ValueError(
                "dr_grpo divides by rows * max_length: give max_length, or the normalizer itself"
            )
        return lengths.new_tensor(max(lengths.numel(), 1) * max_length, dtype=torch.float32)
    if reference.LOSS_TYPES[loss_type].row_mean:
        return lengths.new_tensor(max(lengths.numel(), 1), dtype=torch.float32)
    return lengths.sum().clamp(min=1).float()


def _own_normalizer(
    loss_type: str, logprobs: Tensor, cu_seqlens: Tensor, mask: Tensor | None
) -> float | Tensor:
    """`loss_normalizer` of this batch; a number of the host wherever it is known there."""
    if loss_type == "dr_grpo":
        return loss_normalizer(loss_type, cu_seqlens)
    if reference.LOSS_TYPES[loss_type].row_mean:
        return float(max(len(cu_seqlens) - 1, 1))
    if mask is None:
        return float(max(len(logprobs), 1))
    return mask.sum().clamp(min=1).float()


def _reference(
    logprobs: Tensor,
    old_logprobs: Tensor,
    scores: Tensor,
    cu_seqlens: Tensor,
    *,
    group_size: int | None,
    group_ids: Tensor | None,
    advantage_scale: str,
    advantage_eps: float,
    reward_mask: Tensor | None,
    **others: object,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The specification: advantages first, where rewards came in."""
    checks.check_values(scores, cu_seqlens, len(logprobs), advantage_scale, reward_mask)
    advantages = scores
    if advantage_scale != "given":
        advantages = reference_advantages(
            scores.detach(),
            group_ids,
            group_size=group_size or 0,
            mask_B=reward_mask,
            scale=advantage_scale,
            eps=advantage_eps,
        )
    return reference.grpo_loss(logprobs, old_logprobs, advantages, cu_seqlens, **others)


backends.register(
    "grpo_loss",
    backends.cpu_backend(partial(torch_op.run, backend="cpu")),
    backends.triton_backend(partial(torch_op.run, backend="triton")),
    backends.cuda_backend(partial(torch_op.run, backend="cuda")),
    backends.Backend(name="reference", function=_reference),
)
