"""`linear_logprobs` on kernels as torch operators with a gradient, for compile and export."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from visa_kernels.linear_logprobs import passes
from visa_kernels.linear_logprobs.head import Head, Rows, Stats


def rows_of(backend: str) -> Rows:
    """The row kernels of a backend; only the one in use is imported."""
    if backend == "cpu":
        from visa_kernels.linear_logprobs import cpu_kernel as rows
    elif backend == "triton":
        from visa_kernels.linear_logprobs import triton_kernel as rows
    else:
        assert backend == "chunked", backend
        from visa_kernels.linear_logprobs import torch_rows as rows
    return cast(Rows, rows)


def head_of(weight: Tensor, bias: Tensor | None, temperature: float, softcap: float) -> Head:
    wide = None if bias is None else bias.detach().float().contiguous()
    return Head(weight=weight.detach(), bias=wide, temperature=temperature, softcap=softcap)


@torch.library.custom_op("visa_kernels::linear_logprobs", mutates_args=())
def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float,
    chunk_tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprobs, entropy, shift and log-sum as in `head.Stats`, each [T] float32."""
    head = head_of(weight, bias, temperature, softcap)
    ids = ids.contiguous()
    stats = passes.forward(rows_of(backend), hidden.detach(), head, ids, None, chunk_tokens)
    # An operator's results may not share memory, and these four came as rows of one tensor.
    return stats.logprobs.clone(), stats.entropy.clone(), stats.shift.clone(), stats.log_sum.clone()


@linear_logprobs.register_fake
def _(hidden: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cast(Any, tuple(hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(4)))


@torch.library.custom_op("visa_kernels::linear_logprobs_backward", mutates_args=())
def linear_logprobs_backward(
    dlogprobs: Tensor | None,
    dentropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    stats: list[Tensor],
    temperature: float,
    softcap: float,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    chunk_tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; empty tensors for those that are not needed."""
    head = head_of(weight, bias, temperature, softcap)
    kept = Stats(logprobs=stats[0], entropy=stats[1], shift=stats[2], log_sum=stats[3])
    if dlogprobs is None:
        dlogprobs = torch.zeros_like(kept.logprobs)
    dlogprobs = dlogprobs.float().contiguous()
    dentropy = None if dentropy is None else dentropy.float().contiguous()
    ids = ids.contiguous()
    index = _with_gradient(dlogprobs, dentropy)
    gradients = passes.Gradients.empty(
        hidden, head, (need_hidden, need_weight, need_bias), every_row=index is None
    )
    if index is not None:
        ids, kept, dlogprobs = ids[index], kept[index], dlogprobs[index]
        dentropy = None if dentropy is None else dentropy[index]
    passes.backward(
        rows_of(backend),
        hidden.detach(),
        head,
        ids,
        kept,
        dlogprobs,
        dentropy,
        index,
        chunk_tokens,
        gradients,
    )
    return in_types_of(gradients, hidden, weight, bias)


def _with_gradient(dlogprobs: Tensor, dentropy: Tensor | None) -> Tensor | None:
    """Tokens whose gradient is not 0; None for all. A CPU knows at once, a GPU would have to wait.
    """
    if dlogprobs.device.type != "cpu":
        return None
    active = dlogprobs != 0
    if dentropy is not None:
        active |= dentropy != 0
    return None if bool(active.all()) else active.nonzero().squeeze(-1)


def in_types_of(
    gradients: passes.Gradients, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The three gradients in the types of what they belong to; empty where not wanted."""
    nothing = hidden.new_empty(0)
    dhidden, dweight, dbias = gradients.dhidden, gradients.dweight, gradients.dbias
    return (
        nothing if dhidden is None else dhidden,
        torch.empty_like(nothing) if dweight is None else dweight.to(weight.dtype),
        torch.empty_like(nothing) if dbias is None or bias is None else dbias.to(bias.dtype),
    )


def fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `in_types_of` gives, for tracing."""
    nothing = hidden.new_empty(0)
    return (
        hidden.new_empty(hidden.shape) if needs[0] else nothing,
        weight.new_empty(weight.shape) if needs[1] else torch.empty_like(nothing),
        torch.empty_like(bias) if needs[2] and bias is not None else torch.empty_like(nothing),
    )


@linear_logprobs_backward.register_fake
def _(
    dlogprobs: Tensor | None,
    dentropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    stats: list[Tensor],
    temperature: float,
    softcap: float,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    chunk_tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(hidden, weight, bias, (need_hidden, need_weight, need_bias))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, ids, bias, *settings = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.save_for_backward(hidden, weight, ids, bias, *output)
    ctx.settings = settings


def _backward(
    ctx: Any, dlogprobs: Tensor | None, dentropy: Tensor | None, *unused: Any
) -> tuple[Any, ...]:
    hidden, weight, ids, bias, *stats = ctx.saved_tensors
    temperature, softcap, chunk_tokens, backend = ctx.settings
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    if (dlogprobs is None and dentropy is None) or not any(needs):
        return (None,) * 8
    dhidden, dweight, dbias = linear_logprobs_backward(
        dlogprobs,
        dentropy,
        hidden,
        weight,
        ids,
        bias,
        stats,
        temperature,
        softcap,
        *needs,
        chunk_tokens,
        backend,
    )
    return (
        dhidden if needs[0] else None,
        dweight if needs[1] else None,
        None,
        dbias if needs[2] else None,
        *[None] * 4,
    )


linear_logprobs.register_autograd(_backward, setup_context=_keep)
