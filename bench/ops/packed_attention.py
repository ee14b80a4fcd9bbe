"""Attention of packed sequences, forward and backward, against torch's on padded rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import attention as shared
from bench import ours
from bench.registry import Case, Inputs, Op, Provider, register
from visa_kernels import packed_attention


def case(
    name: str,
    lengths: list[int],
    heads: int,
    head_dim: int,
    dtype: str = "float32",
    window: int | None = None,
    **about: Any,
) -> Case:
    """Sequences of an encoder; work is counted without what padding or windows leave out."""
    kind, tokens = getattr(torch, dtype), sum(lengths)

    def build(device: str) -> Inputs:
        inputs = shared.inputs_of(tokens, heads, heads, head_dim, kind, device)
        cu = shared.bounds(lengths, device)
        return inputs | {"cu_seqlens": cu, "lengths": lengths, "window": window}

    reach = [min(n, 2 * window + 1) if window is not None else n for n in lengths]
    pairs = sum(n * width for n, width in zip(lengths, reach, strict=True))
    return Case(
        name=name + ("" if dtype == "float32" else f",{dtype}"),
        build=build,
        bytes_moved=shared.bytes_moved(tokens, heads, heads, head_dim, kind.itemsize),
        flops=shared.flops(pairs, heads, head_dim),
        dtype=dtype,
        **about,
    )


def uneven(count: int, shortest: int, longest: int) -> list[int]:
    """Lengths spread evenly between two bounds, in a fixed mixed order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return [shortest + (longest - shortest) * i // max(count - 1, 1) for i in order]


def backend(name: str) -> Provider:
    def attention(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        return packed_attention(
            q,
            k,
            v,
            inputs["cu_seqlens"],
            window=inputs["window"],
            max_seqlen=max(inputs["lengths"]),
            backend=name,
        )

    return shared.forward_and_backward(attention)


def to_padded(inputs: Inputs) -> Inputs:
    """Rows padded to the longest, and the mask that such an encoder builds once for its layers."""
    wide, is_token = shared.padded(inputs, inputs["lengths"])
    mask = is_token[:, None, None, :]
    if inputs["window"] is not None:
        place = torch.arange(is_token.shape[1], device=is_token.device)
        near = (place[None] - place[:, None]).abs() <= inputs["window"]
        # A padding query whose window holds padding alone would give NaN.
        mask = (mask & near) | (place[None] == place[:, None])
    return wide | {"mask": mask, "is_token": is_token}


def sdpa(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
    return shared.sdpa(q, k, v, inputs["mask"])


def exact(inputs: Inputs) -> list[Tensor]:
    """Sequence by sequence in float64."""
    parts = []
    for rows in shared.segments(inputs["lengths"]):
        place = torch.arange(rows.start, rows.stop, device=inputs["q"].device)
        mask = torch.ones(len(place), len(place), dtype=torch.bool, device=place.device)
        if inputs["window"] is not None:
            mask = (place[None] - place[:, None]).abs() <= inputs["window"]
        parts.append((rows, place, mask))
    return shared.exact_gradients(inputs, parts)


def flex() -> Provider:
    """torch's flex attention with a block mask, which is built once and not timed."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)

    def attention(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return compiled(q, k, v, block_mask=inputs["block_mask"])[0].transpose(0, 1)

    return shared.forward_and_backward(attention)


def to_flex(inputs: Inputs) -> Inputs:
    from torch.nn.attention.flex_attention import create_block_mask

    device, lengths, window = inputs["q"].device, inputs["lengths"], inputs["window"]
    owner = torch.repeat_interleave(torch.tensor(lengths, device=device))

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = owner[i] == owner[j]
        return same if window is None else same & ((i - j).abs() <= window)

    n = len(owner)
    return inputs | {"block_mask": create_block_mask(sees, None, None, n, n, device=device)}


def skip(provider: str, case: Case, device: str) -> str | None:
    """flex attention has no backward on the CPU."""
    if provider == "flex" and device == "cpu":
        return "flex attention has no backward on the CPU"
    return ours.skip("packed_attention")(provider, case, device)


register(
    Op(
        name="packed_attention",
        cases=(
            case("64 texts of 16-128,12x32", uneven(64, 16, 128), 12, 32, devices=("cpu",)),
            case(
                "16 texts of 32-512,12x64",
                uneven(16, 32, 512),
                12,
                64,
                headline=True,
                devices=("cpu",),
            ),
            case("16 texts of 32-512,12x64", uneven(16, 32, 512), 12, 64, "bfloat16"),
            case("4x1024,12x64,window 64", [1024] * 4, 12, 64, window=64, devices=("cpu",)),
            case(
                "128 texts of 32-512,16x64",
                uneven(128, 32, 512),
                16,
                64,
                "bfloat16",
                headline=True,
                devices=("cuda",),
            ),
            case("16x2048,16x128", [2048] * 16, 16, 128, "bfloat16", devices=("cuda",)),
            case(
                "16x4096,12x64,window 64",
                [4096] * 16,
                12,
                64,
                "bfloat16",
                window=64,
                devices=("cuda",),
            ),
        ),
        providers={
            "eager": lambda inputs: [
                x[inputs["is_token"]] for x in shared.forward_and_backward(sdpa)(inputs)
            ],
            **{name: backend(name) for name in ours.names("packed_attention")},
            "flex": flex(),
        },
        prepare={"eager": to_padded, "flex": to_flex},
        notes={
            "eager": "torch SDPA on padded rows with a mask; padding is not timed, unpadding is",
            "varlen": "torch.nn.attention.varlen through packed_attention",
            "sdpa": "torch SDPA sequence by sequence",
        },
        exact=exact,
        rtol=1e-5,
        atol=1e-6,
        budgets={"varlen": 3.0, "flex": 3.0},
        skip=skip,
    )
)
