"""The kernels of `token_logprobs` as torch operators, so that compile and export keep one graph.

The forward operator returns what the backward needs as tensors: `stats` [2, T] holds each row's
shift and log-sum, log p_j = (x_j - shift) / temperature - log_sum.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

FORWARD = (
    "(Tensor logits, Tensor ids, float temperature, bool with_entropy, bool inplace_backward, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)
BACKWARD = (
    "(Tensor logits, Tensor ids, Tensor entropy, Tensor stats, Tensor? grad_logprobs, "
    "Tensor? grad_entropy, float temperature, str backend) -> Tensor"
)
INPLACE = BACKWARD.replace("Tensor logits", "Tensor(a!) logits", 1).replace("-> Tensor", "-> ()")


def run(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    with_entropy: bool,
    inplace_backward: bool,
    *,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [...] and entropies [...] (of no use without `with_entropy`)."""
    logits_TV = logits.reshape(-1, logits.shape[-1])
    ids_T = ids.reshape(-1)
    logprobs_T, entropy_T, _ = forward_op(
        logits_TV, ids_T, temperature, with_entropy, inplace_backward, backend
    )
    return logprobs_T.view(ids.shape), entropy_T.view(ids.shape) if with_entropy else entropy_T


def _kernel(backend: str) -> ModuleType:
    return importlib.import_module(f"visa_kernels.token_logprobs.{backend}_kernel")


def _rows(logits_TV: Tensor) -> Tensor:
    """Rows that are contiguous in themselves, any stride between them."""
    return logits_TV if logits_TV.stride(1) == 1 else logits_TV.contiguous()


@torch.library.custom_op("visa_kernels::token_logprobs", mutates_args=(), schema=FORWARD)
def forward_op(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    with_entropy: bool,
    inplace_backward: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(ids)
    logprobs = logits.new_empty(rows, dtype=torch.float32)
    entropy = logits.new_empty(rows if with_entropy else 0, dtype=torch.float32)
    stats = logits.new_empty((2, rows), dtype=torch.float32)
    if rows:
        ids = ids.contiguous()
        _kernel(backend).forward(_rows(logits), ids, temperature, logprobs, entropy, stats)
    return logprobs, entropy, stats


@forward_op.register_fake
def _(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    with_entropy: bool,
    inplace_backward: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = ids.shape[0]
    return (
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows if with_entropy else 0, dtype=torch.float32),
        logits.new_empty((2, rows), dtype=torch.float32),
    )


@torch.library.custom_op("visa_kernels::token_logprobs_backward", mutates_args=(), schema=BACKWARD)
def backward_op(
    logits: Tensor,
    ids: Tensor,
    entropy: Tensor,
    stats: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    backend: str,
) -> Tensor:
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _gradient(_rows(logits), dlogits, ids, entropy, stats, grad_logprobs, grad_entropy,
              temperature, backend)
    return dlogits


@backward_op.register_fake
def _(logits: Tensor, *others: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.custom_op(
    "visa_kernels::token_logprobs_backward_", mutates_args=("logits",), schema=INPLACE
)
def inplace_op(
    logits: Tensor,
    ids: Tensor,
    entropy: Tensor,
    stats: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    backend: str,
) -> None:
    _gradient(logits, logits, ids, entropy, stats, grad_logprobs, grad_entropy, temperature,
              backend)


@inplace_op.register_fake
def _(logits: Tensor, *others: Any) -> None:
    return None


def _gradient(
    logits: Tensor,
    dlogits: Tensor,
    ids: Tensor,
    entropy: Tensor,
    stats: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    backend: str,
) -> None:
    if not logits.numel():
        return
    grads = (
        None if grad_logprobs is None else grad_logprobs.contiguous(),
        None if grad_entropy is None else grad_entropy.contiguous(),
    )
    _kernel(backend).backward(logits, dlogits, ids.contiguous(), temperature, entropy, stats, grads)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, ids, ctx.temperature, ctx.with_entropy, ctx.inplace, ctx.backend = inputs
    _, entropy, stats = output
    ctx.save_for_backward(logits, ids, entropy, stats)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    logits, ids, entropy, stats = ctx.saved_tensors
    if not ctx.with_entropy:
        grad_entropy = None
    arguments = (ids, entropy, stats, grad_logprobs, grad_entropy, ctx.temperature, ctx.backend)
    if grad_logprobs is None and grad_entropy is None:
        return None, None, None, None, None, None
    # Compiled code reuses memory by its own plan, and may not overwrite what it has saved.
    if ctx.inplace and logits.stride(1) == 1 and not torch.compiler.is_compiling():
        dlogits = logits.detach()
        inplace_op(dlogits, *arguments)
    else:
        dlogits = backward_op(logits, *arguments)
    return dlogits, None, None, None, None, None


forward_op.register_autograd(_backward, setup_context=_setup_context)
