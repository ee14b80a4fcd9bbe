"""Terms of a policy loss whose old policy is the current one: every ratio is 1, no clip acts.

The token kernels are those of a known old policy, told other bounds. With d = logp - x they weigh
A by clamp(exp(d), low, high) (the formula of cispo) or by exp(d) inside the clip. So bounds of 1
give the plain policy gradient, and the sampler's logprobs in the place of x give a correction of
each token in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from visa_kernels.grpo_loss import reference as policy
from visa_kernels.linear_grpo_loss import plan
from visa_kernels.linear_grpo_loss.plan import Bounds, Terms

RATIO_OF_ONE = Bounds(low=1.0, high=1.0, dual=float("inf"), cispo=True)


def make_terms(
    first_pass: Callable[[], Tensor],
    tokens: int,
    advantages: Tensor,
    cu_seqlens: Tensor,
    settings: dict[str, Any],
) -> tuple[Terms, policy.Rows, Bounds]:
    """Terms of all tokens, their rows, and the bounds that make the kernels see a ratio of 1.

    first_pass  logprobs [T] of all tokens, for what needs a row's before any gradient: a correction
                of whole rows, or of tokens under gspo, which shares the row's mean among them
    settings    keywords of `plan.make_terms`
    """
    correction = settings["sampler_correction"]
    if correction == "none":
        nothing = torch.zeros(tokens, dtype=torch.float32, device=advantages.device)
        return *plan.make_terms(nothing, advantages, cu_seqlens, **settings), RATIO_OF_ONE
    if correction.startswith("token") and settings["loss_type"] != "gspo":
        plain = settings | {"sampler_correction": "none"}
        terms, rows = plan.make_terms(
            settings["sampler_logprobs"], advantages, cu_seqlens, **plain
        )
        low, cap = settings["correction_low"], settings["correction_cap"]
        if correction == "token_mask":
            return masked_outside(terms), rows, Bounds(low=low, high=cap, dual=cap, cispo=False)
        return terms, rows, Bounds(low=low, high=cap, dual=float("inf"), cispo=True)
    terms, rows = plan.make_terms(first_pass(), advantages, cu_seqlens, **settings)
    if settings["loss_type"] == "gspo":
        mean_B = rows.sum_B(terms.policy_scale) / rows.count_B.clamp(min=1)
        terms = replace(terms, policy_scale=(mean_B[rows.row_N] * rows.mask_N).contiguous())
    return terms, rows, RATIO_OF_ONE


def masked_outside(terms: Terms) -> Terms:
    """The same gradients with every advantage negative, its sign in the scale: below zero the clip
    and the dual clip together leave the band between them, above zero the clip has no lower end.
    """
    return replace(
        terms,
        advantages=-terms.advantages.abs(),
        policy_scale=-terms.policy_scale * terms.advantages.sign(),
    )
