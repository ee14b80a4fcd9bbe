"""One decoding step of completions that share prompts, against a copy of the prompt for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench import ours
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import shared_prefix_decode

ORDER = ("q", "prompt_k", "prompt_v", "prompt_lengths", "own_k", "own_v", "own_lengths", "group_of")


def case(
    groups: int,
    prompt: int,
    size: int,
    written: int,
    heads: tuple[int, int, int],
    dtype: str = "float32",
    **about: Any,
) -> Case:
    """`groups` prompts with `size` slots each that have written so many tokens; heads are
    (H, Hk, D).

    Bytes and operations are those of one copy of each prompt.
    """
    kind = getattr(torch, dtype)
    n_heads, kv_heads, head_dim = heads
    slots = groups * size

    def build(device: str) -> Inputs:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=device).to(kind)

        prompt_k = draw(groups, kv_heads, head_dim, prompt)
        return {
            "q": draw(slots, n_heads, head_dim),
            "prompt_k": prompt_k.transpose(2, 3),
            "prompt_v": draw(groups, kv_heads, prompt, head_dim),
            "prompt_lengths": torch.full((groups,), prompt, device=device),
            "own_k": draw(slots, kv_heads, 2 * written, head_dim),
            "own_v": draw(slots, kv_heads, 2 * written, head_dim),
            "own_lengths": torch.full((slots,), written, device=device),
            "group_of": torch.arange(groups, device=device).repeat_interleave(size),
        }

    tokens = groups * prompt + slots * written
    moved = 2 * (tokens * kv_heads + slots * n_heads) * head_dim * kind.itemsize
    name = f"{groups}x({prompt}+{size}x{written}),{n_heads}/{kv_heads}x{head_dim}"
    return Case(
        name=name + ("" if dtype == "float32" else f",{dtype}"),
        build=build,
        bytes_moved=moved,
        flops=4 * slots * n_heads * (prompt + written) * head_dim,
        dtype=dtype,
        **about,
    )


def backend(name: str) -> Provider:
    def run(inputs: Inputs) -> Tensor:
        return shared_prefix_decode(*(inputs[key] for key in ORDER), backend=name)

    return run


def to_copies(inputs: Inputs) -> Inputs:
    """Every slot's cache behind a copy of its prompt, as a cache of rows holds them."""
    written = int(inputs["own_lengths"][0])
    k, v = (
        torch.cat(
            [inputs[f"prompt_{kind}"][inputs["group_of"]], inputs[f"own_{kind}"][:, :, :written]], 2
        )
        for kind in "kv"
    )
    return {"q": inputs["q"][:, :, None], "k": k, "v": v}


def copies(inputs: Inputs) -> Tensor:
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    return scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])[:, :, 0]


def to_products(inputs: Inputs) -> Inputs:
    groups, written = len(inputs["prompt_k"]), int(inputs["own_lengths"][0])
    own = {f"own_{kind}": inputs[f"own_{kind}"][:, :, :written] for kind in "kv"}
    return inputs | own | {"groups": groups}


def products(inputs: Inputs) -> Tensor:
    """torch's batched products, a prompt's for all its slots at once."""
    prompt_k, prompt_v = inputs["prompt_k"], inputs["prompt_v"]
    own_k, own_v = inputs["own_k"], inputs["own_v"]
    groups, kv_heads, prompt, head_dim = prompt_k.shape
    slots, heads, _ = inputs["q"].shape
    q = (inputs["q"] * head_dim**-0.5).view(slots, kv_heads, heads // kv_heads, head_dim)

    def grouped(x: Tensor) -> Tensor:
        x = x.unflatten(0, (groups, -1)).transpose(1, 2)
        return x.flatten(2, 3).flatten(0, 1)

    def ungrouped(x: Tensor) -> Tensor:
        x = x.view(groups, kv_heads, slots // groups, heads // kv_heads, -1)
        return x.transpose(1, 2).flatten(0, 1)

    shared = ungrouped(torch.bmm(grouped(q), prompt_k.flatten(0, 1).transpose(1, 2)))
    own = torch.bmm(q.flatten(0, 1), own_k.flatten(0, 1).transpose(1, 2)).view(*q.shape[:3], -1)
    weights = torch.cat([shared, own], -1).softmax(-1)
    out = ungrouped(torch.bmm(grouped(weights[..., :prompt]), prompt_v.flatten(0, 1)))
    out_own = torch.bmm(weights[..., prompt:].flatten(0, 1), own_v.flatten(0, 1))
    return (out + out_own.view_as(out)).reshape(slots, heads, head_dim)


def exact(inputs: Inputs) -> Tensor:
    """Copies in float64."""
    return copies({name: x.double() for name, x in to_copies(inputs).items()})


register(
    Op(
        name="shared_prefix_decode",
        cases=(
            case(8, 64, 8, 32, (4, 2, 64), devices=("cpu",)),
            case(8, 384, 8, 48, (4, 2, 64), headline=True, devices=("cpu",)),
            case(4, 512, 8, 256, (16, 8, 128), "bfloat16", devices=("cpu",)),
        ),
        providers={
            "eager": copies,
            "products": products,
            **{name: backend(name) for name in ours.names("shared_prefix_decode")},
        },
        prepare={"eager": to_copies, "products": to_products},
        devices=("cpu",),
        notes={
            "eager": "a copy of the prompt for each row and torch SDPA, as a cache of rows has it; "
            "making copies is not timed",
            "products": "torch's batched products on shared prompts",
        },
        exact=exact,
        rtol=1e-5,
        atol=1e-6,
        skip=ours.skip("shared_prefix_decode"),
    )
)
