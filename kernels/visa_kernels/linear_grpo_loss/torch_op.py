"""`linear_grpo_loss` on kernels as torch operators, for compile and export.

Three of them. The first has no autograd of its own: it takes detached tensors and returns logprobs,
entropies and the gradients of the loss in hidden, weight and bias. The second ties those gradients
to the loss. The third scales them in the backward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from visa_kernels.grpo_loss.reference import Rows as TokenRows
from visa_kernels.linear_grpo_loss import passes, plan
from visa_kernels.linear_grpo_loss.passes import PolicyRows
from visa_kernels.linear_grpo_loss.plan import Bounds, Terms
from visa_kernels.linear_logprobs.passes import Gradients
from visa_kernels.linear_logprobs.torch_op import fake_gradients, head_of, in_types_of


def rows_of(backend: str) -> PolicyRows:
    """The row kernels of a backend; only the one in use is imported."""
    if backend == "cpu":
        from visa_kernels.linear_grpo_loss import cpu_kernel as rows
    elif backend == "triton":
        from visa_kernels.linear_grpo_loss import triton_kernel as rows
    else:
        assert backend == "chunked", backend
        from visa_kernels.linear_grpo_loss import torch_rows as rows
    return cast(PolicyRows, rows)


@torch.library.custom_op(
    "visa_kernels::linear_grpo_gradients", mutates_args=("accumulate_into",)
)
def linear_grpo_gradients(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    old_logprobs: Tensor,
    advantages: Tensor,
    policy_scale: Tensor,
    ref_logprobs: Tensor | None,
    kl_scale: Tensor | None,
    row_of_token: Tensor,
    mask: Tensor,
    measured: Tensor,
    counts: Tensor,
    accumulate_into: Tensor | None,
    temperature: float,
    softcap: float,
    sequences: bool,
    cispo: bool,
    clip_low: float,
    clip_high: float,
    clip_dual: float,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    skip_rows: bool,
    chunk_tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logprobs [T], entropy [T], dhidden, dweight, dbias, and how many times too large they are.

    measured  [T] bool, tokens whose logprobs the metrics or the clip of their row need
    """
    terms = Terms(
        old_logprobs=old_logprobs,
        advantages=advantages,
        policy_scale=policy_scale,
        ref_logprobs=ref_logprobs,
        kl_scale=kl_scale,
    )
    bounds = Bounds(low=clip_low, high=clip_high, dual=clip_dual, cispo=cispo)
    needs = (need_hidden, need_weight, need_bias)
    head = head_of(weight, bias, temperature, softcap)
    half = hidden.dtype == torch.float16
    moves = plan.may_move(terms) if any(needs) else torch.zeros_like(measured)
    order = passes.order_of(moves, measured, plan.sizes(terms), half, skip_rows)
    gradients = Gradients.empty(
        hidden,
        head,
        needs,
        every_row=order.index is None and hidden.device.type != "cpu" and not sequences,
        accumulate_into=accumulate_into,
        weight_alpha=1.0 if accumulate_into is None else 1.0 / order.scale,
    )
    rows = rows_of(backend)
    if sequences or not gradients.wanted:
        token_rows = TokenRows(row_N=row_of_token, mask_N=mask, count_B=counts)
        stats = passes.by_sequence(
            rows,
            hidden,
            head,
            ids,
            terms,
            bounds,
            token_rows,
            order,
            skip_rows,
            chunk_tokens,
            gradients,
        )
    else:
        scaled = terms if order.scale == 1 else terms.times(order.scale)
        stats = passes.fused(
            rows, hidden, head, ids, scaled, bounds, order, chunk_tokens, gradients
        )
    if accumulate_into is not None:
        gradients.dweight = None
    return (
        stats.logprobs.clone(),
        stats.entropy.clone(),
        *in_types_of(gradients, hidden, weight, bias),
        hidden.new_full((), order.scale, dtype=torch.float32),
    )


@linear_grpo_gradients.register_fake
def _(hidden: Tensor, weight: Tensor, ids: Tensor, bias: Tensor | None, *others: Any) -> Any:
    accumulate_into, needs = others[9], others[17:20]
    own = (needs[0], needs[1] and accumulate_into is None, needs[2])
    tokens = len(hidden)
    return (
        hidden.new_empty(tokens, dtype=torch.float32),
        hidden.new_empty(tokens, dtype=torch.float32),
        *fake_gradients(hidden, weight, bias, own),
        hidden.new_empty((), dtype=torch.float32),
    )


@torch.library.custom_op("visa_kernels::with_gradients", mutates_args=())
def with_gradients(
    loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dhidden: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    scale: Tensor,
    accumulated: bool,
    backend: str,
) -> Tensor:
    """The loss, with gradients in hidden, weight and bias that are known already."""
    return loss.clone()


@with_gradients.register_fake
def _(loss: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(loss)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[4:8])
    ctx.accumulated, ctx.backend = inputs[8:10]


def _scale(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    *known, scale = ctx.saved_tensors
    if ctx.accumulated:
        torch._assert_async(
            gradient == 1,
            "dweight is in accumulate_into already, so the loss must be differentiated with "
            "gradient 1: put factors into normalizer instead",
        )
    factor = gradient / scale
    # The usual factor of 1 costs no copy of [V, D] where it can be looked at: not while tracing.
    as_is = type(factor) is Tensor and factor.device.type == "cpu" and factor.item() == 1
    ready = [
        None if not want or x.shape == (0,) else x if as_is else scaled(x, factor, ctx.backend)
        for x, want in zip(known, ctx.needs_input_grad[1:4], strict=True)
    ]
    return None, *ready, *[None] * 6


with_gradients.register_autograd(_scale, setup_context=_keep)


@torch.library.custom_op("visa_kernels::scaled", mutates_args=())
def scaled(x: Tensor, factor: Tensor, backend: str) -> Tensor:
    """x * factor in float32, in the type of x; torch alone would round the factor to that first."""
    if x.device.type == "cpu":
        return x * factor.item()
    if x.dtype == torch.float32:
        return x * factor
    if backend == "triton":
        from visa_kernels.linear_grpo_loss import triton_kernel

        return triton_kernel.scaled(x, factor)
    return (x.float() * factor).to(x.dtype)


@scaled.register_fake
def _(x: Tensor, factor: Tensor, backend: str) -> Tensor:
    return torch.empty_like(x)
