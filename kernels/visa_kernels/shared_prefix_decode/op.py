"""Attention of one new token per row, the rows of a group sharing one copy of their prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.packed_attention.checks import FLOATS, MAX_HEAD_DIM, scale_or_default
from visa_kernels.shared_prefix_decode import cpu_kernel, reference


def shared_prefix_decode(
    q: Tensor,
    prompt_k: Tensor,
    prompt_v: Tensor,
    prompt_lengths: Tensor,
    own_k: Tensor,
    own_v: Tensor,
    own_lengths: Tensor,
    group_of: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v of one query a slot over its group's prompt and its own tokens.

    What a decoder does for every token it samples, with a prompt's keys and values read once for
    all completions of its group.

    q                  [S, H, D]      fp32, bf16 or fp16 (fp64 by the reference); D up to 256
    prompt_k, prompt_v [P, Hk, T, D]  as q; H a multiple of Hk. With strides of any order; the C++
                                      kernel is fastest where a prompt's keys lie transposed
    prompt_lengths     [P]            int64: tokens of each prompt, 0 to T
    own_k, own_v       [S', Hk, C, D] as q, S' >= S: what slots have written themselves, the token
                                      at hand included
    own_lengths        [S]            int64: tokens that each slot has written, 0 to C
    group_of           [S]            int64: the prompt of each slot, in any order
    scale              1 / sqrt(D) by default

    Returns [S, H, D] in q's type; softmax and sums are computed in fp32. What lies behind the
    lengths is not read. A slot that sees no token gets 0. The reference is differentiable, the C++
    kernel is not.

    Raises ValueError for shapes and types that do not fit and, on the CPU, for lengths and groups
    that the caches do not hold.
    """
    _check(q, prompt_k, prompt_v, own_k, own_v)
    for name, x, count in (
        ("prompt_lengths", prompt_lengths, len(prompt_k)),
        ("own_lengths", own_lengths, len(q)),
        ("group_of", group_of, len(q)),
    ):
        if x.shape != (count,) or x.dtype != torch.int64 or x.device != q.device:
            raise ValueError(
                f"{name} must be int64 of shape [{count}] on {q.device}, "
                f"got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
            )
    run = backends.choose("shared_prefix_decode", q.device.type, backend, q.dtype)
    return run(
        q,
        prompt_k,
        prompt_v,
        prompt_lengths,
        own_k,
        own_v,
        own_lengths,
        group_of,
        scale_or_default(scale, q.shape[-1]),
    )


def _check(q: Tensor, prompt_k: Tensor, prompt_v: Tensor, own_k: Tensor, own_v: Tensor) -> None:
    every = (q, prompt_k, prompt_v, own_k, own_v)
    shapes = "got " + ", ".join(str(tuple(x.shape)) for x in every)
    fits = (
        q.ndim == 3
        and prompt_k.ndim == own_k.ndim == 4
        and prompt_k.shape == prompt_v.shape
        and own_k.shape == own_v.shape
        and prompt_k.shape[1] == own_k.shape[1]
        and q.shape[2] == prompt_k.shape[3] == own_k.shape[3]
        and len(own_k) >= len(q)
    )
    if not fits:
        raise ValueError(
            "q must be [S, H, D], prompt_k and prompt_v [P, Hk, T, D], own_k and own_v "
            f"[S or more, Hk, C, D], {shapes}"
        )
    key_heads = prompt_k.shape[1]
    if not key_heads or q.shape[1] % key_heads:
        raise ValueError(f"the query heads H must be a multiple of the key heads Hk, {shapes}")
    if not 1 <= q.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(f"head sizes D from 1 to {MAX_HEAD_DIM} are supported, {shapes}")
    if q.dtype not in FLOATS or len({(x.dtype, x.device) for x in every}) > 1:
        found = ", ".join(f"{x.dtype} on {x.device}" for x in every)
        raise ValueError(
            f"q and caches must have one floating type of 16, 32 or 64 bits and one device: {found}"
        )


backends.register(
    "shared_prefix_decode",
    backends.cpu_backend(cpu_kernel.shared_prefix_decode),
    backends.Backend(name="reference", function=reference.shared_prefix_decode),
)
