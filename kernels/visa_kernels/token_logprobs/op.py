"""Log-probability of chosen tokens under a model's logits."""

from __future__ import annotations

from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.token_logprobs import reference, torch_op


@overload
def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float = 1.0,
    with_entropy: Literal[False] = False,
    backend: str | None = None,
    *,
    inplace_backward: bool = False,
) -> Tensor: ...


@overload
def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float = 1.0,
    *,
    with_entropy: Literal[True],
    backend: str | None = None,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]: ...


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    backend: str | None = None,
    *,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(id) under softmax(logits / temperature), and the entropy of that distribution in nats.

    logits [..., V] any floating type; -inf marks tokens that cannot be drawn (not a whole row)
    ids    [...]    int64, each in [0, V)
    inplace_backward  the backward pass writes the gradient over the logits, which saves their size
                    in memory; their values are lost, and a second backward pass is an error. Has
                    no effect on the reference, under torch.compile, and on logits that must be
                    copied first because V is not their contiguous dimension.

    Returns logprobs [...], or (logprobs, entropy) with `with_entropy`: float32, float64 for float64
    logits (which the reference alone takes). Differentiable in the logits. A row with a NaN, with
    +inf, or of -inf alone gives NaN. The kernels read the logits once forward and once backward,
    and give a row whose upstream gradient is zero an exact zero gradient whatever it holds.

    Raises ValueError for shapes that do not fit, ids that are not int64 and a temperature that is
    not above 0; on the CPU also for an id outside [0, V). On a GPU such an id is not read back:
    its log-probability is NaN.
    """
    if logits.ndim < 1 or logits.shape[:-1] != ids.shape:
        raise ValueError(
            "logits must be [..., V] and ids [...], "
            f"got {tuple(logits.shape)} and {tuple(ids.shape)}"
        )
    if ids.dtype != torch.int64:
        raise ValueError(f"ids must be int64, got {ids.dtype}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    run = backends.choose("token_logprobs", logits.device.type, backend, logits.dtype)
    logprobs, entropy = run(logits, ids, temperature, with_entropy, inplace_backward)
    return (logprobs, entropy) if with_entropy else logprobs


def _reference(
    logits: Tensor, ids: Tensor, temperature: float, with_entropy: bool, inplace_backward: bool
) -> tuple[Tensor, Tensor | None]:
    return reference.token_logprobs(logits, ids, temperature, with_entropy)


backends.register(
    "token_logprobs",
    backends.cpu_backend(partial(torch_op.run, backend="cpu")),
    backends.triton_backend(partial(torch_op.run, backend="triton")),
    backends.cuda_backend(partial(torch_op.run, backend="cuda")),
    backends.Backend(name="reference", function=_reference),
)
