"""What a policy loss needs of each token before its logprob is known, and which tokens it needs.

A few operations on vectors of T turn row means, masks, sampler corrections and the weight of the KL
term into two factors per token, so that the fused kernels see one formula.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from visa_kernels.grpo_loss import reference as policy


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Per token, float32 and contiguous: dlogprob = policy_scale * slope + kl_scale * KL's slope.

    Zero wherever a token is masked, so that nothing that stands there has an effect.
    """

    old_logprobs: Tensor
    advantages: Tensor
    policy_scale: Tensor
    ref_logprobs: Tensor | None = None
    kl_scale: Tensor | None = None

    def __getitem__(self, index: slice | Tensor) -> Terms:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return Terms(**{name: x if x is None else x[index] for name, x in every.items()})

    def times(self, factor: float) -> Terms:
        """The same with both scales multiplied."""
        kl_scale = None if self.kl_scale is None else self.kl_scale * factor
        return replace(self, policy_scale=self.policy_scale * factor, kl_scale=kl_scale)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of the ratio, and which of the two formulas of a single token."""

    low: float
    high: float
    dual: float
    cispo: bool


def make_terms(
    old_logprobs: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    *,
    loss_type: str,
    normalizer: float | Tensor,
    ref_logprobs: Tensor | None,
    kl_beta: float,
    sampler_logprobs: Tensor | None,
    sampler_correction: str,
    sequence_weight: str,
    correction_low: float,
    correction_cap: float,
    mask: Tensor | None,
) -> tuple[Terms, policy.Rows]:
    """Terms of all tokens, and their rows; reads nothing back from the device."""
    rows = policy.rows_of(cu_seqlens, len(old_logprobs), mask, torch.float32)
    old = _at_mask(old_logprobs, rows)
    share = rows.mask_N / normalizer
    if policy.LOSS_TYPES[loss_type].row_mean:
        share = share / rows.count_B.clamp(min=1)[rows.row_N]
    weight = share
    if sampler_correction != "none":
        assert sampler_logprobs is not None
        d = old - _at_mask(sampler_logprobs, rows)
        whole = sampler_correction.startswith("sequence")
        log_weight = policy.SEQUENCE_WEIGHTS[sequence_weight] if whole else policy.token_log_weight
        bounded = policy.CORRECTIONS[sampler_correction]
        raw = policy.cut(log_weight(d, rows)).exp()
        weight = share * bounded(raw, correction_low, correction_cap)
    pulled = ref_logprobs is not None and kl_beta != 0
    terms = Terms(
        old_logprobs=old,
        advantages=_at_mask(advantages.detach()[rows.row_N], rows),
        policy_scale=weight.contiguous(),
        ref_logprobs=_at_mask(ref_logprobs, rows) if pulled else None,
        kl_scale=(kl_beta * share).contiguous() if pulled else None,
    )
    return terms, rows


def may_move(terms: Terms) -> Tensor:
    """Tokens that may have a gradient, bool [T]."""
    moves = (terms.policy_scale * terms.advantages) != 0
    return moves if terms.kl_scale is None else moves | (terms.kl_scale != 0)


def sizes(terms: Terms) -> Tensor:
    """About as large as each token's dlogprob will be [T]."""
    policy_size = (terms.policy_scale * terms.advantages).abs()
    return policy_size if terms.kl_scale is None else policy_size + terms.kl_scale.abs()


def sequence_slopes(logprobs: Tensor, terms: Terms, rows: policy.Rows, bounds: Bounds) -> Tensor:
    """dlogprobs [T] of gspo (arXiv:2507.18071), whose ratio is that of the row.

    The loss of a row is v(s) mean(w) with s = exp(mean of log-ratios): what a token's logprob
    does to it is v'(s) s / n * sum(w) over the row, where w holds the row's share.
    """
    d = torch.where(rows.mask_N > 0, logprobs - terms.old_logprobs, 0.0)
    ratio = rows.mean_B(policy.cut(d)).exp()[rows.row_N]
    slope = clip_slope(ratio, terms.advantages, bounds) * ratio
    total = rows.sum_B(terms.policy_scale)[rows.row_N]
    count = rows.count_B.clamp(min=1)[rows.row_N]
    inside = (d.abs() <= policy.LOG_RATIO_LIMIT) & (rows.mask_N > 0)
    slopes = torch.where(inside, slope * total / count, 0.0)
    return slopes + kl_slopes(logprobs, terms)


def token_slopes(logprobs: Tensor, terms: Terms, bounds: Bounds) -> Tensor:
    """dlogprobs of the loss types whose ratio is the token's own."""
    d = logprobs - terms.old_logprobs
    ratio = policy.cut(d).exp()
    if bounds.cispo:
        slope = -ratio.clamp(bounds.low, bounds.high) * terms.advantages
    else:
        slope = clip_slope(ratio, terms.advantages, bounds) * ratio
        slope = torch.where(d.abs() > policy.LOG_RATIO_LIMIT, 0.0, slope)
    return slope * terms.policy_scale + kl_slopes(logprobs, terms)


def kl_slopes(logprobs: Tensor, terms: Terms) -> Tensor | float:
    """Derivative of the weighted k3 estimate of KL(policy || reference)."""
    if terms.kl_scale is None or terms.ref_logprobs is None:
        return 0.0
    d = terms.ref_logprobs - logprobs
    slope = torch.where(d.abs() > policy.LOG_RATIO_LIMIT, 0.0, 1 - policy.cut(d).exp())
    return torch.where(terms.kl_scale == 0, 0.0, slope * terms.kl_scale)


def clip_slope(ratio: Tensor, advantage: Tensor, bounds: Bounds) -> Tensor:
    """Derivative of the clipped term in the ratio, dual clip included (arXiv:1912.09729, eq. 5)."""
    follows = ratio * advantage <= ratio.clamp(bounds.low, bounds.high) * advantage
    far = (advantage < 0) & (ratio > bounds.dual)
    return torch.where(follows & ~far, -advantage, 0.0)


def _at_mask(x_T: Tensor, rows: policy.Rows) -> Tensor:
    x_T = x_T.detach().to(torch.float32)
    return torch.where(rows.mask_N > 0, x_T, 0.0).contiguous()
