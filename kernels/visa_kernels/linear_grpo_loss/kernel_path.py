"""From the arguments of `linear_grpo_loss` to its operators, and back to loss and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visa_kernels.grpo_loss.op import grpo_loss
from visa_kernels.linear_grpo_loss import on_policy, plan, torch_op
from visa_kernels.linear_grpo_loss.plan import Bounds
from visa_kernels.linear_grpo_loss.reference import measured_mask
from visa_kernels.linear_logprobs import checks
from visa_kernels.linear_logprobs.op import linear_logprobs


def run_on(name: str) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """`linear_grpo_loss` on a backend's kernels."""

    def run(
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        old_logprobs: Tensor | None,
        advantages: Tensor,
        cu_seqlens: Tensor,
        *,
        bias: Tensor | None,
        accumulate_into: Tensor | None,
        metrics_for_skipped: bool,
        mask: Tensor | None,
        **settings: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        checks.check_one_dtype(hidden, weight)
        head = {name: settings.pop(name) for name in ("temperature", "softcap")}
        speed = {name: settings.pop(name) for name in ("skip_rows", "chunk_tokens")}
        measured = mask
        if not metrics_for_skipped:
            measured = measured_mask(
                advantages, cu_seqlens, len(hidden), mask, settings["kl_beta"]
            )
        logprobs, entropy, tie = _gradients(
            name,
            hidden,
            weight,
            ids,
            bias,
            accumulate_into,
            old_logprobs,
            advantages,
            cu_seqlens,
            mask,
            measured,
            head,
            speed,
            settings,
        )
        loss, metrics = grpo_loss(
            logprobs,
            logprobs.detach() if old_logprobs is None else old_logprobs,
            advantages,
            cu_seqlens,
            entropy=entropy,
            mask=measured,
            **settings,
        )
        return tie(loss), metrics

    return run


def _gradients(
    name: str,
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    accumulate_into: Tensor | None,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    cu_seqlens: Tensor,
    mask: Tensor | None,
    measured: Tensor | None,
    head: dict[str, Any],
    speed: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Logprobs, entropies, and a function that ties the gradients to the loss."""
    of_terms = {name: x for name, x in settings.items() if not name.startswith("clip_")}

    def first_pass() -> Tensor:
        with torch.no_grad():
            shown = hidden if mask is None else hidden.where(mask.bool().unsqueeze(-1), 0.0)
            chunk = speed["chunk_tokens"]
            return linear_logprobs(
                shown, weight, ids, bias, **head, chunk_tokens=chunk, backend=name
            )

    if old_logprobs is None:
        terms, rows, bounds = on_policy.make_terms(
            first_pass, len(hidden), advantages, cu_seqlens, of_terms | {"mask": mask}
        )
    else:
        terms, rows = plan.make_terms(
            old_logprobs, advantages, cu_seqlens, mask=mask, **of_terms
        )
        bounds = Bounds(
            low=1 - settings["clip_low"],
            high=1 + settings["clip_high"],
            dual=float("inf") if settings["clip_dual"] is None else settings["clip_dual"],
            cispo=settings["loss_type"] == "cispo",
        )
    learning = torch.is_grad_enabled()
    needs = (
        learning and hidden.requires_grad,
        accumulate_into is not None or (learning and weight.requires_grad),
        learning and bias is not None and bias.requires_grad,
    )
    shown = hidden.detach()
    if mask is not None and not speed["skip_rows"]:
        shown = torch.where(mask.bool().unsqueeze(-1), shown, 0.0)
    logprobs, entropy, *known = torch_op.linear_grpo_gradients(
        shown,
        weight.detach(),
        ids.contiguous(),
        None if bias is None else bias.detach(),
        terms.old_logprobs,
        terms.advantages,
        terms.policy_scale,
        terms.ref_logprobs,
        terms.kl_scale,
        rows.row_N,
        rows.mask_N,
        rows.mask_N > 0 if measured is None else measured.bool(),
        rows.count_B,
        accumulate_into,
        head["temperature"],
        head["softcap"] or 0.0,
        settings["loss_type"] == "gspo" and old_logprobs is not None,
        bounds.cispo,
        bounds.low,
        bounds.high,
        bounds.dual,
        *needs,
        speed["skip_rows"],
        speed["chunk_tokens"] or 0,
        name,
    )
    accumulated = accumulate_into is not None
    own = weight.detach() if accumulated else weight

    def tie(loss: Tensor) -> Tensor:
        return torch_op.with_gradients(loss, hidden, own, bias, *known, accumulated, name)

    return logprobs, entropy, tie
