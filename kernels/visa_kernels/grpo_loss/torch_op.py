"""The kernels of `grpo_loss` as one torch operator with its gradient, for compile and export.

The operator's results are the loss, dloss/dlogprobs [N] in float32, and the metrics in the order of
METRICS. The backward pass multiplies the second by the gradient of the first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

METRICS = (
    "clip_low_frac",
    "clip_high_frac",
    "kl_k1",
    "kl_k3",
    "ess",
    "max_abs_dlogp",
    "correction_capped_frac",
    "ref_kl",
    "entropy",
)


def run(
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
    backend: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Call the operator on a kernel's name; the loss, and a dict of the metrics in use."""
    given = isinstance(normalizer, Tensor)
    arguments = (
        logprobs,
        old_logprobs,
        scores,
        cu_seqlens,
        normalizer if given else None,
        ref_logprobs,
        sampler_logprobs,
        entropy,
        mask,
        group_ids,
        reward_mask,
        loss_type,
        1.0 if given else normalizer,
        clip_low,
        clip_high,
        float("inf") if clip_dual is None else clip_dual,
        kl_beta,
        sampler_correction,
        sequence_weight,
        correction_low,
        correction_cap,
        advantage_scale,
        advantage_eps,
        group_size or 0,
        backend,
    )
    if torch.compiler.is_compiling() or type(logprobs) not in PLAIN:
        loss, _, values = _grpo_loss(*arguments)
        values = values.detach().unbind()
    else:
        loss = _Loss.apply(logprobs, arguments, found := [])
        values = found[0]
    named = dict(zip(METRICS, values, strict=True))
    if sampler_correction == "none":
        del named["correction_capped_frac"]
    if ref_logprobs is None:
        del named["ref_kl"]
    if entropy is None:
        del named["entropy"]
    return loss, named


def _forward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernel(backend)(
        logprobs,
        old_logprobs,
        scores,
        cu_seqlens,
        normalizer,
        ref_logprobs,
        sampler_logprobs,
        entropy,
        mask,
        group_ids,
        reward_mask,
        loss_type,
        divisor,
        clip_low,
        clip_high,
        clip_dual,
        kl_beta,
        sampler_correction,
        sequence_weight,
        correction_low,
        correction_cap,
        advantage_scale,
        advantage_eps,
        group_size,
    )


@cache
def _kernel(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return importlib.import_module(f"visa_kernels.grpo_loss.{backend}_kernel").grpo_loss


_grpo_loss = torch.library.custom_op("visa_kernels::grpo_loss", _forward, mutates_args=())


@_grpo_loss.register_fake
def _(logprobs: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        logprobs.new_empty((), dtype=torch.float32),
        logprobs.new_empty(logprobs.shape, dtype=torch.float32),
        logprobs.new_empty(len(METRICS), dtype=torch.float32),
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _scale_gradient(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    (dlogprobs,) = ctx.saved_tensors
    gradient = None if grad_loss is None else (dlogprobs * grad_loss).to(ctx.dtype)
    return gradient, *([None] * 24)


_grpo_loss.register_autograd(_scale_gradient, setup_context=_keep_gradient)


class _Loss(torch.autograd.Function):
    """The kernel with its gradient, for plain tensors in eager mode.

    torch's own wrapper of operators, which compilers and tensor subclasses need, reads the schema
    once per argument, and its time grows with the square of their number: 0.12 ms a call here, more
    than the loss of a short batch.
    """

    @staticmethod
    def forward(
        ctx: Any, logprobs: Tensor, arguments: tuple[Any, ...], metrics: list[tuple[Tensor, ...]]
    ) -> Tensor:
        loss, dlogprobs, values = _kernel(arguments[-1])(*arguments[:-1])
        metrics.append(values.unbind())  # not an output: autograd would have to be told to leave it
        ctx.save_for_backward(dlogprobs)
        ctx.dtype = logprobs.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (dlogprobs,) = ctx.saved_tensors
        if torch._C._autograd._get_current_graph_task_keep_graph():
            return (dlogprobs * grad_loss).to(ctx.dtype), None, None
        # Nothing will read the saved gradient again: it is scaled in place, and not at all by the 1
        # of loss.backward() where that is known without a sync.
        if type(grad_loss) is not Tensor or grad_loss.is_cuda or grad_loss.item() != 1.0:
            dlogprobs.mul_(grad_loss)
        return dlogprobs.to(ctx.dtype), None, None


PLAIN = (Tensor, torch.nn.Parameter)
