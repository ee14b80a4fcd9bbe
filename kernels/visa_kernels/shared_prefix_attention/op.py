"""Causal attention of groups packed as [prompt, c_1 .. c_G], every prompt there once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.packed_attention.checks import check_bounds, check_heads, scale_or_default
from visa_kernels.packed_attention.torch_op import kernel
from visa_kernels.shared_prefix_attention import reference


def shared_prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_groups: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention in which the completions of a group share one copy of its prompt.

    The packed order is prompt, c_1 .. c_G, next prompt, ... (`shared_prefix_layout` makes it).
    A prompt token sees its prompt up to itself; a completion token sees the whole prompt and its
    own completion up to itself, and nothing of other completions or groups. Position ids (rotary
    embeddings) are applied to q and k before: completions count on from the prompt's end.

    q          [N, H, D]   fp32, bf16 or fp16 (fp64 by the reference); D up to 256
    k, v       [N, Hk, D]  as q; H a multiple of Hk
    cu_seqlens [S + 1]     int32 or int64: token bounds of segments, from 0 to N
    cu_groups  [P + 1]     int32 or int64: segment bounds of groups, from 0 to S; the first segment
                           of a group is its prompt. Segments and groups may be empty; a group of
                           one segment is a plain causal sequence.
    scale      1 / sqrt(D) by default

    Returns [N, H, D] in q's type; softmax and sums are computed in fp32. Differentiable in q, k, v:
    the gradients of a prompt's k and v are sums over its completions, in a fixed order. They equal
    those of a batch in which every completion has its own copy of the prompt.

    Raises ValueError for shapes and types that do not fit and, on the CPU alone, for bounds that do
    not rise from 0 to N and S; on a GPU nothing is read back.
    """
    check_heads(q, k, v)
    check_bounds("cu_seqlens", cu_seqlens, len(q), q.device)
    check_bounds("cu_groups", cu_groups, len(cu_seqlens) - 1, q.device)
    run = backends.choose("shared_prefix_attention", q.device.type, backend, q.dtype)
    return run(q, k, v, cu_seqlens, cu_groups, scale_or_default(scale, q.shape[-1]))


def _kernel(name: str) -> Callable[..., Tensor]:
    run_kernel = kernel(name)

    def run(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_groups: Tensor, scale: float
    ) -> Tensor:
        return run_kernel(q, k, v, cu_seqlens, cu_groups, True, -1, scale)

    return run


backends.register(
    "shared_prefix_attention",
    backends.triton_backend(_kernel("triton")),
    backends.cpu_backend(_kernel("cpu")),
    backends.Backend(
        name="sdpa", function=_kernel("sdpa"), devices=("cpu",), dtypes=backends.KERNEL_DTYPES
    ),
    backends.Backend(name="reference", function=reference.shared_prefix_attention),
)
