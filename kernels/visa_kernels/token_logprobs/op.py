"""Log-probability of chosen tokens under a model's logits."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.token_logprobs import reference


@overload
def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float = 1.0,
    with_entropy: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float = 1.0,
    *,
    with_entropy: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(id) under softmax(logits / temperature), and the entropy of that distribution in nats.

    logits [..., V] any floating type; -inf marks tokens that cannot be drawn (not a whole row)
    ids    [...]    int64, each in [0, V)

    Returns logprobs [...], or (logprobs, entropy) with `with_entropy`: float32, float64 for float64
    logits. Differentiable in the logits.

    Raises ValueError for shapes that do not fit and a temperature that is not above 0.
    """
    if logits.ndim < 1 or logits.shape[:-1] != ids.shape:
        raise ValueError(
            "logits must be [..., V] and ids [...], "
            f"got {tuple(logits.shape)} and {tuple(ids.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    run = backends.choose("token_logprobs", logits.device.type, backend)
    logprobs, entropy = run(logits, ids, temperature, with_entropy)
    return (logprobs, entropy) if with_entropy else logprobs


backends.register(
    "token_logprobs",
    backends.Backend(name="reference", function=reference.token_logprobs),
)
