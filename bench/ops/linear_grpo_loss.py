"""Policy loss from hidden states: logits, loss and the gradients of hidden and weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import ours
from bench.ops.token_logprobs import eager as logprobs_and_entropy
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import linear_grpo_loss

GROUP = 8
EXACT_ROWS = 256
"""Rows of logits at once in float64."""

EXACT_LIMIT = {"cpu": 10**12, "cuda": 10**14}
"""FLOPs above which a case is not computed in float64 as well."""

Result = tuple[Tensor, Tensor, Tensor]


def case(
    tokens: int,
    hidden_size: int,
    vocabulary: int,
    dtype: str = "float32",
    zero_share: float = 0.0,
    rows: int = 8,
    **about: Any,
) -> Case:
    """`rows` completions that make up T tokens; `zero_share` of the rows have advantage zero.

    FLOPs: 6 T D V, of all tokens, also where some need fewer. Bytes: hidden and weight are read,
    their gradients written.
    """
    kind = getattr(torch, dtype)
    length = tokens // rows

    def build(device: str) -> Inputs:
        advantages = torch.randn(rows, device=device)
        advantages[: round(zero_share * rows)] = 0.0
        hidden = torch.randn(tokens, hidden_size, device=device) / hidden_size**0.5
        return {
            "hidden": hidden.to(kind).requires_grad_(),
            "weight": torch.randn(vocabulary, hidden_size, device=device).to(kind).requires_grad_(),
            "ids": torch.randint(0, vocabulary, (tokens,), device=device),
            "old_logprobs": torch.empty(tokens, device=device),
            "advantages": advantages,
            "cu_seqlens": torch.arange(rows + 1, device=device) * length,
            "length": length,
        }

    def with_old(device: str) -> Inputs:
        """The old policy differs by 0.1 nats a token, so that few tokens are clipped."""
        inputs = build(device)
        inputs["old_logprobs"] = old_logprobs(inputs)
        return inputs

    size = kind.itemsize
    name = f"T={tokens},D={hidden_size},V={vocabulary}"
    name += "" if dtype == "float32" else f",{dtype}"
    name += f",{zero_share:.0%} zero" if zero_share else ""
    return Case(
        name=name,
        build=with_old,
        bytes_moved=2 * size * hidden_size * (tokens + vocabulary),
        flops=6 * tokens * hidden_size * vocabulary,
        dtype=dtype,
        **about,
    )


@torch.no_grad()
def old_logprobs(inputs: Inputs) -> Tensor:
    """The policy's own, chunk by chunk, and noise."""
    parts = []
    for rows in torch.arange(len(inputs["ids"]), device=inputs["ids"].device).split(512):
        logits = (inputs["hidden"][rows] @ inputs["weight"].t()).float()
        parts.append(logprobs_and_entropy(logits, inputs["ids"][rows])[0])
    old = torch.cat(parts)
    return old + 0.1 * torch.randn_like(old)


ALL_ROWS = "-all-rows"
"""Suffix of the backend that is told to leave no row out: what leaving out gains, in one race. On a
CPU chunks leave zero rows out all the same: compare the shares of the floor of two cases there."""


def backend(name: str) -> Provider:
    skip_rows = not name.endswith(ALL_ROWS)

    def run(inputs: Inputs) -> Result:
        loss, _ = linear_grpo_loss(
            inputs["hidden"],
            inputs["weight"],
            inputs["ids"],
            inputs["old_logprobs"],
            inputs["advantages"],
            inputs["cu_seqlens"],
            normalizer=float(len(inputs["ids"])),
            skip_rows=skip_rows,
            backend=name.removesuffix(ALL_ROWS),
        )
        return loss.detach(), *torch.autograd.grad(loss, (inputs["hidden"], inputs["weight"]))

    return run


def skip(provider: str, case: Case, device: str) -> str | None:
    """As `ours.skip`; one that leaves no row out is run where there are rows to leave out."""
    if provider.endswith(ALL_ROWS) and "zero" not in case.name:
        return "no row to leave out"
    return ours.skip("linear_grpo_loss")(provider.removesuffix(ALL_ROWS), case, device)


def eager(
    hidden: Tensor, weight: Tensor, ids: Tensor, old: Tensor, advantages: Tensor, length: int
) -> Tensor:
    """As one would write it: all logits at once, the entropy for the log, dapo's clipped mean."""
    logprobs, _ = logprobs_and_entropy(hidden @ weight.t(), ids)
    ratio = (logprobs - old).view(-1, length).exp()
    clipped = ratio.clamp(0.8, 1.2)
    wide = advantages[:, None]
    return -torch.minimum(ratio * wide, clipped * wide).sum() / len(ids)


def eager_loss(function: Callable[..., Tensor]) -> Provider:
    def run(inputs: Inputs) -> Result:
        leaves = (inputs["hidden"], inputs["weight"])
        loss = function(
            *leaves,
            inputs["ids"],
            inputs["old_logprobs"],
            inputs["advantages"],
            inputs["length"],
        )
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    return run


def exact(inputs: Inputs) -> Result | None:
    """In float64, a chunk of rows at a time, with the gradients written out; None if too much."""
    hidden, weight = inputs["hidden"].detach().double(), inputs["weight"].detach().double()
    device = hidden.device
    if 6 * hidden.numel() * len(weight) > EXACT_LIMIT[device.type]:
        return None
    ids, old = inputs["ids"], inputs["old_logprobs"].double()
    advantage = inputs["advantages"].double().repeat_interleave(inputs["length"])
    dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for rows in torch.arange(len(ids), device=device).split(EXACT_ROWS):
        logp = (hidden[rows] @ weight.t()).log_softmax(-1)
        chosen = logp.gather(-1, ids[rows, None]).squeeze(-1)
        ratio = (chosen - old[rows]).exp()
        terms, bounds = ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows]
        total -= torch.minimum(terms, bounds).sum()
        slope = torch.where(terms <= bounds, -terms, 0.0) / len(ids)
        dlogits = logp.exp_().neg_()
        dlogits.scatter_add_(-1, ids[rows, None], torch.ones_like(dlogits[:, :1]))
        dlogits *= slope[:, None]
        dhidden[rows] = dlogits @ weight
        dweight.addmm_(dlogits.t(), hidden[rows])
    return total / len(ids), dhidden, dweight


register(
    Op(
        name="linear_grpo_loss",
        cases=(
            case(2048, 1024, 32000, headline=True, devices=("cpu",)),
            case(2048, 1024, 32000, zero_share=0.5, headline=True, devices=("cpu",)),
            case(512, 256, 4096),
            case(512, 256, 4096, "bfloat16"),
            case(8192, 4096, 131072, "bfloat16", headline=True, devices=("cuda",)),
            case(8192, 4096, 131072, "bfloat16", 0.5, headline=True, devices=("cuda",)),
            case(4096, 2048, 32000, "bfloat16", devices=("cuda",)),
        ),
        providers={
            "reference": backend("reference"),
            "eager": eager_loss(eager),
            "compile": eager_loss(torch.compile(eager, dynamic=False)),
            **{name: backend(name) for name in ours.names("linear_grpo_loss")},
            f"triton{ALL_ROWS}": backend(f"triton{ALL_ROWS}"),
        },
        exact=exact,
        rtol=2e-6,
        atol=1e-10,
        skip=skip,
    )
)
