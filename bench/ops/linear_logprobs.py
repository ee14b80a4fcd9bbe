"""Log-probabilities from hidden states, forward and backward, without a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import ours
from bench.ops.linear_grpo_loss import EXACT_LIMIT, EXACT_ROWS
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import linear_logprobs

Result = tuple[Tensor, Tensor, Tensor]
Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def case(
    tokens: int, hidden_size: int, vocabulary: int, dtype: str = "float32", **about: Any
) -> Case:
    """Hidden [T, D], weight [V, D]. Six products of T D V are needed; eight, where logits are not
    kept, are held against the same floor."""
    kind = getattr(torch, dtype)

    def build(device: str) -> Inputs:
        hidden = torch.randn(tokens, hidden_size, device=device) / hidden_size**0.5
        return {
            "hidden": hidden.to(kind).requires_grad_(),
            "weight": torch.randn(vocabulary, hidden_size, device=device).to(kind).requires_grad_(),
            "ids": torch.randint(0, vocabulary, (tokens,), device=device),
            "upstream": torch.randn(tokens, device=device) / tokens,
        }

    name = f"T={tokens},D={hidden_size},V={vocabulary}"
    return Case(
        name=name + ("" if dtype == "float32" else f",{dtype}"),
        build=build,
        bytes_moved=2 * kind.itemsize * hidden_size * (tokens + vocabulary),
        flops=6 * tokens * hidden_size * vocabulary,
        dtype=dtype,
        **about,
    )


def forward_and_backward(head: Head) -> Provider:
    """Log-probabilities and the gradients of hidden and weight."""

    def run(inputs: Inputs) -> Result:
        leaves = (inputs["hidden"], inputs["weight"])
        logprobs = head(*leaves, inputs["ids"])
        return logprobs.detach(), *torch.autograd.grad(logprobs, leaves, inputs["upstream"])

    return run


def eager(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """As one would write it: all logits at once, log-softmax in fp32."""
    logits = (hidden @ weight.t()).float()
    return logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)


def backend(name: str) -> Provider:
    return forward_and_backward(
        lambda hidden, weight, ids: linear_logprobs(hidden, weight, ids, backend=name)
    )


def exact(inputs: Inputs) -> Result | None:
    """In float64, a chunk of rows at a time, with the gradients written out; None if too much."""
    hidden, weight = inputs["hidden"].detach().double(), inputs["weight"].detach().double()
    if 6 * hidden.numel() * len(weight) > EXACT_LIMIT[hidden.device.type]:
        return None
    ids, upstream = inputs["ids"], inputs["upstream"].double()
    dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
    parts = []
    for rows in torch.arange(len(ids), device=hidden.device).split(EXACT_ROWS):
        logp = (hidden[rows] @ weight.t()).log_softmax(-1)
        parts.append(logp.gather(-1, ids[rows, None]).squeeze(-1))
        dlogits = logp.exp_().neg_()
        dlogits.scatter_add_(-1, ids[rows, None], torch.ones_like(dlogits[:, :1]))
        dlogits *= upstream[rows, None]
        dhidden[rows] = dlogits @ weight
        dweight.addmm_(dlogits.t(), hidden[rows])
    return torch.cat(parts), dhidden, dweight


register(
    Op(
        name="linear_logprobs",
        cases=(
            case(2048, 1024, 32000, headline=True, devices=("cpu",)),
            case(512, 256, 4096),
            case(8192, 4096, 131072, "bfloat16", headline=True, devices=("cuda",)),
            case(4096, 2048, 32000, "bfloat16", devices=("cuda",)),
        ),
        providers={
            "reference": backend("reference"),
            "eager": forward_and_backward(eager),
            "compile": forward_and_backward(torch.compile(eager, dynamic=False)),
            **{name: backend(name) for name in ours.names("linear_logprobs")},
        },
        exact=exact,
        rtol=2e-6,
        atol=1e-10,
        skip=ours.skip("linear_logprobs"),
    )
)
