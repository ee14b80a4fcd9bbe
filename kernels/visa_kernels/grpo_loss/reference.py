"""Clipped policy losses on packed rows in plain torch: the specification.

Symbols: N tokens of B rows; r = exp(logp - old) the ratio, A the advantage of the token's row.
A loss type is two choices: the term of each token (`surrogate`), and whether a row's tokens are
summed or averaged (`row_mean`). The sum over the batch is divided by the caller's normalizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are cut here, far past every clip, so that exp and its gradient stay finite."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows: which row each token is in, and which tokens count."""

    row_N: Tensor
    mask_N: Tensor
    count_B: Tensor

    def sum_B(self, x_N: Tensor) -> Tensor:
        """Sum of each row over its counted tokens [B]."""
        return x_N.new_zeros(len(self.count_B)).index_add(0, self.row_N, x_N * self.mask_N)

    def mean_B(self, x_N: Tensor) -> Tensor:
        """Mean of each row over its counted tokens [B]; 0 for a row without any."""
        return self.sum_B(x_N) / self.count_B.clamp(min=1)

    def token_mean(self, x_N: Tensor) -> Tensor:
        """Mean over all counted tokens, a scalar; 0 where there are none."""
        return (x_N * self.mask_N).sum() / self.count_B.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a surrogate reads, per token; `logp` alone carries a gradient."""

    logp: Tensor
    old: Tensor
    advantage: Tensor
    clip_low: float
    clip_high: float
    clip_dual: float | None
    rows: Rows


def clip_tokens(x: Policy) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r) A), r per token (PPO, arXiv:1707.06347, eq. 7). Returns terms, r."""
    ratio = cut(x.logp - x.old).exp()
    return _clipped(ratio, x), ratio


def clip_sequences(x: Policy) -> tuple[Tensor, Tensor]:
    """-min(s A, clip(s) A), s the geometric mean of the row's ratios (GSPO, arXiv:2507.18071)."""
    ratio = x.rows.mean_B(cut(x.logp - x.old)).exp()[x.rows.row_N]
    return _clipped(ratio, x), ratio


def clip_weights(x: Policy) -> tuple[Tensor, Tensor]:
    """-stopgrad(clip(r)) A logp: no token loses its gradient (CISPO, arXiv:2506.13585)."""
    ratio = cut(x.logp - x.old).exp()
    weight = ratio.detach().clamp(1 - x.clip_low, 1 + x.clip_high)
    return -weight * x.advantage * x.logp, ratio


def cut(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _clipped(ratio: Tensor, x: Policy) -> Tensor:
    """The clipped term; for A < 0 it is at most -clip_dual * A (arXiv:1912.09729, eq. 5)."""
    clipped = ratio.clamp(1 - x.clip_low, 1 + x.clip_high)
    gain = torch.minimum(ratio * x.advantage, clipped * x.advantage)
    if x.clip_dual is not None:
        far = (x.advantage < 0) & (ratio > x.clip_dual)
        gain = torch.where(far, x.clip_dual * x.advantage, gain)
    return -gain


@dataclass(frozen=True, kw_only=True)
class LossType:
    """A row of the table of loss types."""

    surrogate: Callable[[Policy], tuple[Tensor, Tensor]]
    row_mean: bool


LOSS_TYPES: dict[str, LossType] = {
    "grpo": LossType(surrogate=clip_tokens, row_mean=True),
    "bnpo": LossType(surrogate=clip_tokens, row_mean=False),
    "dapo": LossType(surrogate=clip_tokens, row_mean=False),
    "dr_grpo": LossType(surrogate=clip_tokens, row_mean=False),
    "gspo": LossType(surrogate=clip_sequences, row_mean=True),
    "cispo": LossType(surrogate=clip_weights, row_mean=False),
}


def token_log_weight(d_N: Tensor, rows: Rows) -> Tensor:
    """Log-weight of each token by itself; d = old - sampler."""
    return d_N


def product_log_weight(d_N: Tensor, rows: Rows) -> Tensor:
    """Log of the row's weight, the product of its tokens', at each of them."""
    return rows.sum_B(d_N)[rows.row_N]


def mean_log_weight(d_N: Tensor, rows: Rows) -> Tensor:
    """Log of the geometric mean of the row's weights, at each of its tokens."""
    return rows.mean_B(d_N)[rows.row_N]


def truncated(weight: Tensor, low: float, cap: float) -> Tensor:
    return weight.clamp(low, cap)


def masked(weight: Tensor, low: float, cap: float) -> Tensor:
    return torch.where((weight < low) | (weight > cap), 0.0, weight)


CORRECTIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "token_truncate": truncated,
    "token_mask": masked,
    "sequence_truncate": truncated,
    "sequence_mask": masked,
}
"""How a weight outside its band is treated; a sequence's weight is one of the two below."""

SEQUENCE_WEIGHTS: dict[str, Callable[[Tensor, Rows], Tensor]] = {
    "product": product_log_weight,
    "geometric": mean_log_weight,
}


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    *,
    loss_type: str,
    clip_low: float,
    clip_high: float,
    clip_dual: float | None,
    normalizer: float | Tensor,
    ref_logprobs: Tensor | None,
    kl_beta: float,
    sampler_logprobs: Tensor | None,
    sampler_correction: str,
    sequence_weight: str,
    correction_low: float,
    correction_cap: float,
    entropy: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics; see `op.grpo_loss`, which has checked the arguments."""
    kind = LOSS_TYPES[loss_type]
    rows = rows_of(cu_seqlens, len(logprobs), mask, _dtype(logprobs))
    logp, old = _at_mask(logprobs, rows), _at_mask(old_logprobs, rows).detach()
    sampler = old if sampler_logprobs is None else _at_mask(sampler_logprobs, rows).detach()
    policy = Policy(
        logp=logp,
        old=old,
        advantage=_at_mask(advantages.detach()[rows.row_N], rows),
        clip_low=clip_low,
        clip_high=clip_high,
        clip_dual=clip_dual,
        rows=rows,
    )
    terms, ratio = kind.surrogate(policy)
    metrics = _clip_metrics(ratio.detach(), policy) | _drift_metrics(logp.detach() - sampler, rows)
    if sampler_correction != "none":
        sequence = sampler_correction.startswith("sequence")
        log_weight = SEQUENCE_WEIGHTS[sequence_weight] if sequence else token_log_weight
        weight = cut(log_weight(old - sampler, rows)).exp()
        terms = terms * CORRECTIONS[sampler_correction](weight, correction_low, correction_cap)
        outside = (weight < correction_low) | (weight > correction_cap)
        metrics["correction_capped_frac"] = rows.token_mean(outside.to(logp.dtype))
    if ref_logprobs is not None:
        kl = k3(logp, _at_mask(ref_logprobs, rows).detach())
        terms = terms + kl_beta * kl
        metrics["ref_kl"] = rows.token_mean(kl.detach())
    if entropy is not None:
        metrics["entropy"] = rows.token_mean(_at_mask(entropy, rows).detach())
    total = rows.mean_B(terms).sum() if kind.row_mean else (terms * rows.mask_N).sum()
    return total / normalizer, metrics


def rows_of(cu_seqlens: Tensor, tokens: int, mask: Tensor | None, dtype: torch.dtype) -> Rows:
    """Row of each token, mask and counts; reads nothing back from the device."""
    lengths = cu_seqlens.diff()
    index_B = torch.arange(len(lengths), device=cu_seqlens.device)
    row_N = index_B.repeat_interleave(lengths, output_size=tokens)
    if mask is None:
        mask_N = torch.ones(tokens, dtype=dtype, device=cu_seqlens.device)
    else:
        mask_N = mask.to(dtype)
    count_B = mask_N.new_zeros(len(lengths)).index_add(0, row_N, mask_N)
    return Rows(row_N=row_N, mask_N=mask_N, count_B=count_B)


def k3(logp: Tensor, other: Tensor) -> Tensor:
    """k3 estimate of KL(policy || other) per token, >= 0: e^d - 1 - d with d = other - logp.

    Unbiased where tokens come from the policy (J. Schulman, "Approximating KL divergence", 2020).
    """
    d = cut(other - logp)
    return d.exp() - 1 - d


def _dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _at_mask(x_N: Tensor, rows: Rows) -> Tensor:
    """Values at counted tokens, 0 elsewhere: what stands at masked ones, NaN too, has no effect."""
    return torch.where(rows.mask_N > 0, x_N.to(rows.mask_N.dtype), 0.0)


def _clip_metrics(ratio: Tensor, x: Policy) -> dict[str, Tensor]:
    """Shares of tokens whose ratio is past the bound that acts for their advantage."""
    low = (ratio < 1 - x.clip_low) & (x.advantage < 0)
    high = (ratio > 1 + x.clip_high) & (x.advantage > 0)
    return {
        "clip_low_frac": x.rows.token_mean(low.to(x.logp.dtype)),
        "clip_high_frac": x.rows.token_mean(high.to(x.logp.dtype)),
    }


def _drift_metrics(d: Tensor, rows: Rows) -> dict[str, Tensor]:
    """How far the policy is from what sampled the tokens; d = logp - sampler, 0 at masked ones.

    ess is (sum w)^2 / (N sum w^2) of the weights w = e^d.
    """
    d_cut = cut(d)
    weight = d_cut.exp()
    squares = (weight.square() * rows.mask_N).sum() * rows.count_B.sum()
    ess = (weight * rows.mask_N).sum().square() / squares
    return {
        "kl_k1": rows.token_mean(-d),
        "kl_k3": rows.token_mean(weight - 1 - d_cut),
        "ess": torch.where(squares == 0, 0.0, ess),
        "max_abs_dlogp": torch.cat([d.abs(), d.new_zeros(1)]).amax(),
    }
