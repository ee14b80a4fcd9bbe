"""The kernels of packed and shared-prefix attention as one torch operator with its gradient.

One operator serves both: without `cu_groups` every segment sees itself alone. `backend` names the
kernel, so that compiled and exported graphs keep it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from visa_kernels.devices import on

FORWARD = {"triton": "triton_kernel", "sdpa": "sdpa_kernel", "cpu": "cpu_kernel"}
BACKWARD = {"triton": "triton_backward", "sdpa": "sdpa_kernel", "cpu": "cpu_kernel"}


def kernel(name: str) -> Callable[..., Tensor]:
    """A backend's function: (q, k, v, cu_seqlens, cu_groups, causal, window, scale) -> out."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        cu_groups: Tensor | None,
        causal: bool,
        window: int,
        scale: float,
    ) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        return _attention(q, k, v, cu_seqlens, cu_groups, causal, window, scale, name)[0]

    return run


@torch.library.custom_op("visa_kernels::packed_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_groups: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    forward = _module(FORWARD[backend]).forward
    with on(q):
        return forward(q, k, v, cu_seqlens, cu_groups, causal, window, scale)


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_groups: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    n_tokens, n_heads, _ = q.shape
    spans = (4, n_tokens) if rest[-1] == "triton" else (0,)
    return (
        q.new_empty(q.shape),
        q.new_empty((n_heads, n_tokens), dtype=torch.float32),
        q.new_empty(spans, dtype=torch.int32),
    )


@torch.library.custom_op("visa_kernels::packed_attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    spans: Tensor,
    cu_seqlens: Tensor,
    cu_groups: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    backward = _module(BACKWARD[backend]).backward
    with on(q):
        return backward(
            dout, q, k, v, out, lse, spans, cu_seqlens, cu_groups, causal, window, scale
        )


@_attention_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, cu_groups, *settings = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, cu_groups)
    ctx.settings = settings


def _gradients(ctx: Any, dout: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _attention_backward(dout, *ctx.saved_tensors, *ctx.settings)
    return (*grads, *(None,) * 6)


_attention.register_autograd(_gradients, setup_context=_save)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"visa_kernels.packed_attention.{name}")
