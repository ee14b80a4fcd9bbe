"""Log-probabilities and entropies of chosen tokens, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import ours
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import token_logprobs

EXACT_ROWS = 256
"""Rows of a chunk in float64."""

Result = tuple[Tensor, Tensor, Tensor]


def case(
    tokens: int, vocabulary: int, dtype: str = "float32", **about: Any
) -> Case:
    """Logits [T, V] with a gradient for each log-probability; entropies are logged alone.

    Logits are read forward and backward, their gradient is written: three times their bytes.
    """
    kind = getattr(torch, dtype)

    def build(device: str) -> Inputs:
        return {
            "logits": (2 * torch.randn(tokens, vocabulary, device=device)).to(kind),
            "ids": torch.randint(0, vocabulary, (tokens,), device=device),
            "upstream": torch.randn(tokens, device=device) / tokens,
        }

    moved = tokens * (3 * kind.itemsize * vocabulary + 8 + 3 * 4)
    name = f"T={tokens},V={vocabulary}" + ("" if dtype == "float32" else f",{dtype}")
    return Case(name=name, build=build, bytes_moved=moved, dtype=dtype, **about)


def forward_and_backward(forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Provider:
    """Log-probabilities, entropies and the logits' gradient of a forward function."""

    def run(inputs: Inputs) -> Result:
        logits = inputs["logits"].detach().requires_grad_()
        logprobs, entropy = forward(logits, inputs["ids"])
        (gradient,) = torch.autograd.grad(logprobs, logits, inputs["upstream"])
        return logprobs.detach(), entropy.detach(), gradient

    return run


def eager(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """As one would write it: fp32 log-softmax; the entropy, which is logged, without a gradient."""
    every = logits.float().log_softmax(-1)
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(-1)
    return every.gather(-1, ids[:, None]).squeeze(-1), entropy


def backend(name: str) -> Provider:
    return forward_and_backward(
        lambda logits, ids: token_logprobs(logits, ids, with_entropy=True, backend=name)
    )


def exact(inputs: Inputs) -> Result:
    """In float64, a chunk of rows at a time, with the gradient p - onehot written out."""
    logits, ids, upstream = inputs["logits"], inputs["ids"], inputs["upstream"]
    gradient = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
    logprobs, entropies = [], []
    for rows in torch.arange(len(ids), device=logits.device).split(EXACT_ROWS):
        logp = logits[rows].double().log_softmax(-1)
        p = logp.exp()
        logprobs.append(logp.gather(-1, ids[rows, None]).squeeze(-1))
        entropies.append(-(p * logp).sum(-1))
        part = p.neg_()
        part.scatter_add_(-1, ids[rows, None], torch.ones_like(part[:, :1]))
        gradient[rows] = part * upstream[rows, None].double()
    return torch.cat(logprobs), torch.cat(entropies), gradient


register(
    Op(
        name="token_logprobs",
        cases=(
            case(4096, 32000, headline=True, devices=("cpu",)),
            case(4096, 32000, "bfloat16", devices=("cpu",)),
            case(4096, 640),
            case(256, 32768),
            case(8192, 131072, "bfloat16", headline=True, devices=("cuda",)),
            case(8192, 32000, "bfloat16", devices=("cuda",)),
        ),
        providers={
            "reference": backend("reference"),
            "eager": forward_and_backward(eager),
            "compile": forward_and_backward(torch.compile(eager, dynamic=False)),
            **{name: backend(name) for name in ours.names("token_logprobs")},
        },
        exact=exact,
        rtol=2e-6,
        atol=1e-9,
        skip=ours.skip("token_logprobs"),
    )
)
