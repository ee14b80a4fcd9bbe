"""Policy loss of GRPO and its relatives on packed rows, with metrics of its health."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.grpo_loss import reference

LOSS_TYPES = tuple(reference.LOSS_TYPES)
CORRECTIONS = ("none", "token_truncate")


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    *,
    loss_type: str = "dapo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalizer: float | Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_beta: float = 0.0,
    sampler_logprobs: Tensor | None = None,
    sampler_correction: str = "none",
    correction_cap: float = 2.0,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss to minimise, a scalar, and detached metrics.

    logprobs          [N] of the policy in training; the loss is differentiable in these alone
    old_logprobs      [N] of the policy before this step's updates
    advantages        [B] one per row
    cu_seqlens        [B + 1] integers, row b is tokens cu_seqlens[b] : cu_seqlens[b + 1]
    loss_type         grpo (arXiv:2402.03300), bnpo, dapo (arXiv:2503.14476), dr_grpo
                      (arXiv:2503.20783), gspo (arXiv:2507.18071) or cispo (arXiv:2506.13585)
    clip_low/high     the ratio is clipped to [1 - clip_low, 1 + clip_high]; cispo's authors leave
                      the low side open, which clip_low=1 does
    normalizer        what the sum is divided by. Pass `loss_normalizer` of the WHOLE step to each
                      of its micro-batches: 1 x N and N x 1 of them then give equal gradients.
                      None: this batch's own, right when it is the whole step
    ref_logprobs      [N] of the reference policy: adds kl_beta * k3 estimate of KL(policy || ref)
    sampler_logprobs  [N] as the sampler gave them; with "token_truncate" each token's term (not
                      the KL term) is weighted by min(exp(old - sampler), correction_cap)
    mask              [N] bool, False for tokens that do not count; what stands there has no effect

    Computed in float32 (float64 for float64 logprobs). Log-ratios are cut at +-20. Empty batches,
    empty rows and rows masked throughout add 0 to the loss.

    Metrics, over counted tokens: clip_low_frac, clip_high_frac (the clip acts there), kl_k1, kl_k3
    (estimates of KL(sampler || policy); the old policy stands in for an unknown sampler), ess
    (effective share of the sample, 1 where both agree), max_abs_dlogp; ref_kl and
    correction_capped_frac where used. Without counted tokens all are 0.

    Raises ValueError for an unknown name, shapes that do not fit, and a missing argument that
    another one needs. On CPU it also checks that cu_seqlens rises from 0 to N; on a GPU that would
    cost a sync.
    """
    _check_names(loss_type, sampler_correction, sampler_logprobs, ref_logprobs, kl_beta)
    _check_shapes(
        len(cu_seqlens) - 1,
        logprobs,
        advantages,
        {
            "old_logprobs": old_logprobs,
            "ref_logprobs": ref_logprobs,
            "sampler_logprobs": sampler_logprobs,
            "mask": mask,
        },
    )
    _check_cu_seqlens(cu_seqlens, len(logprobs))
    if normalizer is None:
        normalizer = loss_normalizer(loss_type, counted_tokens(cu_seqlens, mask))
    run = backends.choose("grpo_loss", logprobs.device.type, backend)
    return run(
        logprobs,
        old_logprobs,
        advantages,
        cu_seqlens,
        loss_type=loss_type,
        clip_low=clip_low,
        clip_high=clip_high,
        normalizer=normalizer,
        ref_logprobs=ref_logprobs,
        kl_beta=kl_beta,
        sampler_logprobs=sampler_logprobs,
        sampler_correction=sampler_correction,
        correction_cap=correction_cap,
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
    _check_loss_type(loss_type)
    if loss_type == "dr_grpo":
        if max_length is None or max_length < 1:
            raise ValueError(
                "dr_grpo divides by rows * max_length: give max_length, or the normalizer itself"
            )
        return lengths.new_tensor(max(lengths.numel(), 1) * max_length, dtype=torch.float32)
    if reference.LOSS_TYPES[loss_type].row_mean:
        return lengths.new_tensor(max(lengths.numel(), 1), dtype=torch.float32)
    return lengths.sum().clamp(min=1).float()


def _check_loss_type(loss_type: str) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")


def _check_names(
    loss_type: str,
    sampler_correction: str,
    sampler_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    kl_beta: float,
) -> None:
    _check_loss_type(loss_type)
    if sampler_correction not in CORRECTIONS:
        raise ValueError(
            f"sampler_correction must be one of {', '.join(CORRECTIONS)}, "
            f"got {sampler_correction!r}"
        )
    if sampler_correction != "none" and sampler_logprobs is None:
        raise ValueError(f"sampler_correction {sampler_correction!r} needs sampler_logprobs")
    if kl_beta != 0 and ref_logprobs is None:
        raise ValueError(f"kl_beta {kl_beta} needs ref_logprobs")


def _check_shapes(
    rows: int, logprobs: Tensor, advantages: Tensor, others: dict[str, Tensor | None]
) -> None:
    if logprobs.ndim != 1:
        raise ValueError(f"logprobs must be [N], got {tuple(logprobs.shape)}")
    if advantages.shape != (rows,):
        raise ValueError(
            f"advantages must be [{rows}], one per row of cu_seqlens, got {tuple(advantages.shape)}"
        )
    for name, other in others.items():
        if other is not None and other.shape != logprobs.shape:
            raise ValueError(
                f"{name} must have the shape of logprobs, {tuple(logprobs.shape)}, "
                f"got {tuple(other.shape)}"
            )


def _check_cu_seqlens(cu_seqlens: Tensor, tokens: int) -> None:
    if cu_seqlens.is_floating_point():
        raise ValueError(f"cu_seqlens must be integers, got {cu_seqlens.dtype}")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    ends = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != tokens or ends != sorted(ends):
        raise ValueError(
            f"cu_seqlens must rise from 0 to the number of tokens, {tokens}, "
            f"got {ends[:8]}{' ...' if len(ends) > 8 else ''}"
        )


backends.register(
    "grpo_loss",
    backends.Backend(name="reference", function=reference.grpo_loss),
)
