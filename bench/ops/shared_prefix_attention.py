"""Attention of completions that share their prompt, against a copy of the prompt for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import attention as shared
from bench import ours
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import packed_attention, shared_prefix_attention, shared_prefix_layout


def case(
    groups: int,
    prompt: int,
    size: int,
    completion: int,
    heads: tuple[int, int, int],
    dtype: str = "float32",
    **about: Any,
) -> Case:
    """`groups` prompts with `size` completions each; heads are (H, Hk, D).

    Work is counted for the shared prompt: what a copied prompt computes again is its own loss.
    """
    kind = getattr(torch, dtype)
    n_heads, kv_heads, head_dim = heads

    def build(device: str) -> Inputs:
        layout = shared_prefix_layout(
            [prompt] * groups, [completion] * groups * size, [size] * groups
        ).to(device)
        tokens = len(layout.position_ids)
        return shared.inputs_of(tokens, n_heads, kv_heads, head_dim, kind, device) | {
            "cu_seqlens": layout.cu_seqlens,
            "cu_groups": layout.cu_groups,
            "rows": layout.completion_mask.nonzero()[:, 0],
            "shape": (groups, prompt, size, completion),
        }

    causal = prompt * (prompt + 1) // 2 + size * completion * (completion + 1) // 2
    pairs = groups * (causal + size * completion * prompt)
    tokens = groups * (prompt + size * completion)
    name = f"{groups}x({prompt}+{size}x{completion}),{n_heads}/{kv_heads}x{head_dim}"
    return Case(
        name=name + ("" if dtype == "float32" else f",{dtype}"),
        build=build,
        bytes_moved=shared.bytes_moved(tokens, n_heads, kv_heads, head_dim, kind.itemsize),
        flops=shared.flops(pairs, n_heads, head_dim),
        dtype=dtype,
        **about,
    )


def backend(name: str) -> Provider:
    def attention(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        return shared_prefix_attention(
            q, k, v, inputs["cu_seqlens"], inputs["cu_groups"], backend=name
        )

    return shared.forward_and_backward(attention, "rows")


def to_copies(inputs: Inputs) -> Inputs:
    """Every completion behind its own copy of the prompt, [B * L] tokens."""
    groups, prompt, size, completion = inputs["shape"]
    device = inputs["q"].device
    group = torch.arange(groups, device=device)[:, None, None] * (prompt + size * completion)
    member = torch.arange(size, device=device)[None, :, None] * completion
    place = torch.arange(prompt + completion, device=device)
    index = (group + place + member * (place >= prompt)).flatten()
    own = (place >= prompt).repeat(groups * size)
    copies = {name: inputs[name][index] for name in ("q", "k", "v", "dout")}
    cu = shared.bounds([prompt + completion] * groups * size, device.type)
    longest = prompt + completion
    return copies | {"cu_seqlens": cu, "own": own.nonzero()[:, 0], "longest": longest}


def copied(name: str | None) -> Provider:
    """This package's packed causal attention on the copies."""

    def attention(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        return packed_attention(
            q,
            k,
            v,
            inputs["cu_seqlens"],
            causal=True,
            max_seqlen=inputs["longest"],
            backend=name,
        )

    return shared.forward_and_backward(attention, "own")


def rows_of(x: Tensor, inputs: Inputs) -> Tensor:
    return x.unflatten(0, (-1, inputs["longest"]))


def copied_sdpa(masked: bool) -> Provider:
    """torch's attention on the copies: causal, or with the mask that a padded batch brings."""

    def attention(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        q, k, v = (rows_of(x, inputs) for x in (q, k, v))
        mask = inputs["mask"] if masked else None
        return shared.sdpa(q, k, v, mask, causal=not masked).flatten(0, 1)

    return shared.forward_and_backward(attention, "own")


def to_masked_copies(inputs: Inputs) -> Inputs:
    copies = to_copies(inputs)
    place = torch.arange(copies["longest"], device=copies["q"].device)
    mask = (place[None] <= place[:, None])[None, None]
    count = len(copies["cu_seqlens"]) - 1
    return copies | {"mask": mask.expand(count, 1, -1, -1)}


def flex() -> Provider:
    """torch's flex attention on the shared prompt; its block mask is built once, not timed."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)

    def attention(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = compiled(q, k, v, block_mask=inputs["block_mask"], enable_gqa=grouped)
        return out[0].transpose(0, 1)

    return shared.forward_and_backward(attention, "rows")


def to_flex(inputs: Inputs) -> Inputs:
    from torch.nn.attention.flex_attention import create_block_mask

    groups, prompt, size, completion = inputs["shape"]
    device, length = inputs["q"].device, prompt + size * completion
    place = torch.arange(length, device=device)
    member = torch.where(place < prompt, -1, (place - prompt) // completion).repeat(groups)
    group = torch.arange(groups, device=device).repeat_interleave(length)

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        own = (member[i] == member[j]) & (j <= i)
        return (group[i] == group[j]) & (own | (member[j] < 0) & (member[i] >= 0))

    n = len(group)
    return inputs | {"block_mask": create_block_mask(sees, None, None, n, n, device=device)}


def exact(inputs: Inputs) -> list[Tensor]:
    """In float64: each prompt alone, then each completion on its prompt and itself."""
    groups, prompt, size, completion = inputs["shape"]
    device, parts = inputs["q"].device, []
    for start in range(0, groups * (prompt + size * completion), prompt + size * completion):
        place = torch.arange(prompt, device=device)
        parts.append((slice(start, start + prompt), start + place, place <= place[:, None]))
        for member in range(size):
            first = start + prompt + member * completion
            own = torch.arange(first, first + completion, device=device)
            keys = torch.cat([start + place, own])
            parts.append((slice(first, first + completion), keys, keys[None] <= own[:, None]))
    return [x[inputs["rows"]] for x in shared.exact_gradients(inputs, parts)]


def skip(provider: str, case: Case, device: str) -> str | None:
    """Copies through varlen need a GPU and half precision, flex a GPU."""
    if provider == "flex" and device == "cpu":
        return "flex attention has no backward on the CPU"
    if provider.startswith("copies: "):
        name = provider.removeprefix("copies: ")
        return ours.skip("packed_attention")(name, case, device)
    return ours.skip("shared_prefix_attention")(provider, case, device)


COPIES = {f"copies: {name}": copied(name) for name in ("cpu", "triton", "varlen")}

register(
    Op(
        name="shared_prefix_attention",
        cases=(
            case(1, 512, 8, 256, (8, 2, 64), headline=True, devices=("cpu",)),
            case(1, 512, 8, 256, (8, 2, 64), "bfloat16", devices=("cpu",)),
            case(4, 64, 8, 34, (4, 4, 32), devices=("cpu",)),
            case(4, 512, 8, 256, (32, 8, 128), "bfloat16", headline=True, devices=("cuda",)),
            case(4, 2048, 8, 256, (32, 8, 128), "bfloat16", devices=("cuda",)),
            case(32, 64, 8, 34, (16, 8, 128), "bfloat16", devices=("cuda",)),
        ),
        providers={
            "eager": copied_sdpa(masked=True),
            "copies: causal sdpa": copied_sdpa(masked=False),
            **COPIES,
            **{name: backend(name) for name in ours.names("shared_prefix_attention")},
            "flex": flex(),
        },
        prepare={
            "eager": to_masked_copies,
            "copies: causal sdpa": to_copies,
            **dict.fromkeys(COPIES, to_copies),
            "flex": to_flex,
        },
        notes={
            "eager": "a copy of the prompt per completion, torch SDPA with a mask, as padded "
            "batches run; making copies is not timed",
            "copies: causal sdpa": "the same copies without padding or mask, torch SDPA causal",
            "sdpa": "torch SDPA on the shared prompt and on completions, joined by log-sum-exp",
        },
        exact=exact,
        rtol=1e-5,
        atol=1e-6,
        budgets={"copies: varlen": 3.0, "flex": 3.0},
        skip=skip,
    )
)
