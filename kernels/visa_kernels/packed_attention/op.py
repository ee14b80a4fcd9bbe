"""Attention of sequences packed one behind the other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.packed_attention import reference, varlen
from visa_kernels.packed_attention.checks import check_bounds, check_heads, scale_or_default
from visa_kernels.packed_attention.torch_op import kernel


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    max_seqlen: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v inside each sequence of a packed batch, without padding.

    q          [N, H, D]   fp32, bf16 or fp16 (fp64 by the reference); D up to 256
    k, v       [N, Hk, D]  as q; H a multiple of Hk, query head h reads key head h // (H / Hk)
    cu_seqlens [B + 1]     int32 or int64, rising from 0 to N: sequence b is tokens
                           cu_seqlens[b] to cu_seqlens[b + 1] - 1; sequences may be empty
    causal     keys after the query are hidden
    window     keys more than `window` tokens away are hidden (ModernBERT's local_attention // 2)
    scale      1 / sqrt(D) by default
    max_seqlen an upper bound of the sequences' lengths. Only backend "varlen" needs it: with it
               half-precision calls on a GPU go to torch's own kernel, without it to Triton.

    Returns [N, H, D] in q's type; softmax and sums are computed in fp32. Differentiable in q, k, v.
    No backend but "varlen" (whose kernel sums dq by atomics, unless
    torch.use_deterministic_algorithms is set) depends on the order in which threads run.

    Raises ValueError for shapes and types that do not fit, for a negative window, and, on the CPU
    alone, for cu_seqlens that do not rise from 0 to N; on a GPU nothing is read back.
    """
    check_heads(q, k, v)
    check_bounds("cu_seqlens", cu_seqlens, len(q), q.device)
    if window is not None and window < 0:
        raise ValueError(f"window must be at least 0 tokens, got {window}")
    scale = scale_or_default(scale, q.shape[-1])
    run = _choose(q, max_seqlen, backend)
    return run(q, k, v, cu_seqlens, causal, -1 if window is None else window, scale, max_seqlen)


def _choose(q: Tensor, max_seqlen: int | None, backend: str | None) -> Callable[..., Tensor]:
    """What torch's varlen does not take goes to the next backend, unless it was asked for."""
    unfit = "varlen" if varlen.why_not(q, max_seqlen) is not None else None
    return backends.choose("packed_attention", q.device.type, backend, q.dtype, leave_out=unfit)


def _kernel(name: str) -> Callable[..., Tensor]:
    run_kernel = kernel(name)

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        causal: bool,
        window: int,
        scale: float,
        max_seqlen: int | None,
    ) -> Tensor:
        return run_kernel(q, k, v, cu_seqlens, None, causal, window, scale)

    return run


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    window: int,
    scale: float,
    max_seqlen: int | None,
) -> Tensor:
    return reference.packed_attention(q, k, v, cu_seqlens, causal, window, scale)


backends.register(
    "packed_attention",
    backends.Backend(
        name="varlen",
        function=varlen.packed_attention,
        devices=("cuda",),
        dtypes=varlen.DTYPES,
        why_not=varlen.why_no_varlen,
    ),
    backends.triton_backend(_kernel("triton")),
    backends.cpu_backend(_kernel("cpu")),
    backends.Backend(
        name="sdpa", function=_kernel("sdpa"), devices=("cpu",), dtypes=backends.KERNEL_DTYPES
    ),
    backends.Backend(name="reference", function=_reference),
)
