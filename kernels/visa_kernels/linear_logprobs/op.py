"""Log-probability of chosen tokens from hidden states, without the logits of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.linear_logprobs import checks, reference, torch_op


@overload
def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    with_entropy: Literal[False] = False,
    *,
    chunk_tokens: int | None = None,
    backend: str | None = None,
) -> Tensor: ...


@overload
def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    *,
    with_entropy: Literal[True],
    chunk_tokens: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    *,
    chunk_tokens: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(id) under softmax(x / temperature), and that distribution's entropy in nats.

    x = hidden @ weight.T + bias, and with a softcap c (Gemma's, arXiv:2408.00118) c * tanh(x / c).

    hidden  [T, D] float32, bfloat16 or float16 (float64: the reference)
    weight  [V, D] of the same type; under autocast both are cast to its type first
    ids     [T]    int64 or int32, each in [0, V)
    bias    [V]    -inf marks tokens that cannot be drawn (without a softcap, which makes it -c)

    chunk_tokens  tokens whose logits are in memory at once; None: from the size of V and the free
                  memory (`chunks.chunk_tokens`). It changes rounding alone
    backend       reference, chunked (plain torch, chunk by chunk), cpu or triton

    Returns logprobs [T], or (logprobs, entropy) with `with_entropy`, in float32 (float64 for
    float64). Differentiable in hidden, weight and bias, once.

    Cost: 2 T D V FLOPs forward and 6 T D V backward, 8 in all, because the logits are made again;
    extra memory is one chunk of logits, and [V, D] in float32 for the sum of dweight where weight
    is not float32. For policy losses `linear_grpo_loss` needs 6. On CPU, tokens whose upstream
    gradients are all 0 are left out of the backward pass. No host sync on a GPU.

    Raises ValueError for shapes and types that do not fit, a temperature or softcap that is not
    above 0, and, on CPU, ids outside [0, V); on a GPU such a token's logprob is NaN.
    """
    checks.check_head(hidden, weight, ids, bias, temperature, softcap, chunk_tokens)
    checks.check_ids(ids, len(weight))
    hidden, weight = in_autocast_type(hidden, weight)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    run = backends.choose("linear_logprobs", hidden.device.type, backend, dtype)
    logprobs, entropy = run(
        hidden, weight, ids.long(), bias, temperature, softcap, chunk_tokens=chunk_tokens
    )
    return (logprobs, entropy) if with_entropy else logprobs


def in_autocast_type(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in autocast's type where autocast is on, as torch's own linear layer does."""
    if not torch.is_autocast_enabled(hidden.device.type) or hidden.dtype == torch.float64:
        return hidden, weight
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), weight.to(dtype)


def _reference(*arguments: Any, chunk_tokens: int | None) -> tuple[Tensor, Tensor]:
    return reference.linear_logprobs(*arguments)


def _on(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        bias: Tensor | None,
        temperature: float,
        softcap: float | None,
        *,
        chunk_tokens: int | None,
    ) -> tuple[Tensor, Tensor]:
        checks.check_one_dtype(hidden, weight)
        logprobs, entropy, _, _ = torch_op.linear_logprobs(
            hidden, weight, ids, bias, temperature, softcap or 0.0, chunk_tokens or 0, name
        )
        return logprobs, entropy

    return run


def kernels(run_on: Callable[[str], Callable[..., Any]]) -> list[backends.Backend]:
    """All backends of a loss head but the reference, best first."""
    return [
        backends.cpu_backend(run_on("cpu")),
        backends.triton_backend(run_on("triton")),
        backends.Backend(
            name="chunked", function=run_on("chunked"), dtypes=backends.KERNEL_DTYPES
        ),
    ]


backends.register(
    "linear_logprobs",
    *kernels(_on),
    backends.Backend(name="reference", function=_reference),
)
