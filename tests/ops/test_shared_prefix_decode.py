"""A decoding step of rows that share prompts: float64 by hand, layouts of the caches, checks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.ops.backends import each_backend
from visa_kernels import shared_prefix_decode

PROMPTS = (37, 0, 64, 5, 1)
"""Tokens of each prompt; the fourth has no rows."""
ROWS = ((0, 9), (2, 1), (0, 33), (4, 0), (1, 0), (2, 70), (0, 1), (2, 2), (1, 4))
"""(prompt, own tokens) of each slot, in no order; one sees nothing at all."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Arguments of one call; behind every length stand values that must not be read."""

    q: Tensor
    prompt_k: Tensor
    prompt_v: Tensor
    prompt_lengths: Tensor
    own_k: Tensor
    own_v: Tensor
    own_lengths: Tensor
    group_of: Tensor

    def run(self, backend: str, device: str, **others: float) -> Tensor:
        arguments = {name: x.to(device) for name, x in vars(self).items()}
        return shared_prefix_decode(**arguments, backend=backend, **others).cpu()


def step(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    prompts: tuple[int, ...] = PROMPTS,
    rows: tuple[tuple[int, int], ...] = ROWS,
) -> Step:
    """Random tokens whose scores have a standard deviation of 2; NaN where nothing was written."""
    group_of, own_lengths = (torch.tensor(x, dtype=torch.int64) for x in zip(*rows, strict=True))
    sizes = {"prompt": (len(prompts), max(prompts) + 3), "own": (len(rows) + 2, 75)}
    caches = {
        f"{name}_{kind}": torch.randn(count, kv_heads, tokens, head_dim) * (2**0.5)
        for name, (count, tokens) in sizes.items()
        for kind in "kv"
    }
    for name, lengths in (("prompt", prompts), ("own", own_lengths.tolist())):
        for row, length in enumerate(lengths):
            for kind in "kv":
                caches[f"{name}_{kind}"][row, :, length:] = float("nan")
    return Step(
        q=(torch.randn(len(rows), heads, head_dim) * 2**0.5).to(dtype),
        prompt_lengths=torch.tensor(prompts),
        own_lengths=own_lengths,
        group_of=group_of,
        **{name: x.to(dtype) for name, x in caches.items()},
    )


def keys_and_values(s: Step, slot: int, kv_head: int) -> tuple[Tensor, Tensor]:
    """What a slot sees, [n, D] each."""
    group, own = int(s.group_of[slot]), int(s.own_lengths[slot])
    prompt = int(s.prompt_lengths[group])
    return tuple(
        torch.cat([shared[group, kv_head, :prompt], written[slot, kv_head, :own]])
        for shared, written in ((s.prompt_k, s.own_k), (s.prompt_v, s.own_v))
    )


def by_hand(s: Step, scale: float) -> np.ndarray:
    """[S, H, D] in float64, one row and head at a time."""
    slots, heads, head_dim = s.q.shape
    out = np.zeros((slots, heads, head_dim))
    for slot in range(slots):
        for head in range(heads):
            k, v = keys_and_values(s, slot, head // (heads // s.own_k.shape[1]))
            if not len(k):
                continue
            scores = scale * (k.double().numpy() @ s.q[slot, head].double().numpy())
            weights = np.exp(scores - scores.max())
            out[slot, head] = weights @ v.double().numpy() / weights.sum()
    return out


def by_sdpa(s: Step, scale: float) -> Tensor:
    """The same by torch's attention in the caches' own type."""
    out = torch.zeros_like(s.q)
    repeats = s.q.shape[1] // s.own_k.shape[1]
    for slot in range(len(s.q)):
        for head in range(s.q.shape[1]):
            k, v = keys_and_values(s, slot, head // repeats)
            if len(k):
                query = s.q[slot, head][None, None]
                out[slot, head] = scaled_dot_product_attention(query, k[None], v[None], scale=scale)
    return out


def check(got: Tensor, s: Step, scale: float) -> None:
    """At most twice the error of torch's attention, and 4 units of rounding."""
    assert got.shape == s.q.shape and got.dtype == s.q.dtype
    exact = by_hand(s, scale)
    mine = np.abs(got.double().numpy() - exact).max()
    theirs = np.abs(by_sdpa(s, scale).double().numpy() - exact).max()
    margin = 4 * torch.finfo(s.q.dtype).eps * np.abs(exact).max()
    assert mine <= 2 * theirs + margin, (mine, theirs, margin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (8, 1)])
@each_backend("shared_prefix_decode")
def test_values(backend: str, device: str, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    s = step(heads, kv_heads, 32, dtype)
    check(s.run(backend, device), s, 32**-0.5)


@pytest.mark.parametrize("head_dim", [1, 40, 64, 128, 256])
@each_backend("shared_prefix_decode")
def test_head_sizes(backend: str, device: str, head_dim: int) -> None:
    s = step(4, 2, head_dim)
    scale = 0.7 * head_dim**-0.5
    check(s.run(backend, device, scale=scale), s, scale)


@each_backend("shared_prefix_decode")
def test_more_queries_than_a_tile_holds(backend: str, device: str) -> None:
    s = step(8, 2, 16, prompts=(50, 3), rows=tuple((i % 2, i % 7) for i in range(75)))
    check(s.run(backend, device), s, 0.25)


@pytest.mark.parametrize("name", ["prompt_k", "prompt_v", "own_k", "own_v", "q"])
@each_backend("shared_prefix_decode")
def test_strides(backend: str, device: str, name: str) -> None:
    """Any tensor may lie transposed in memory, as prompts' keys best do, or in a wider one."""
    s = step(4, 2, 32)
    plain = s.run(backend, device)
    x = getattr(s, name)
    transposed = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    wider = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"))
    wider[..., : x.shape[-1]] = x
    for other in (transposed, wider[..., : x.shape[-1]]):
        got = replace(s, **{name: other}).run(backend, device)
        torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)


@each_backend("shared_prefix_decode")
def test_what_is_not_finite_shows(backend: str, device: str) -> None:
    s = step(4, 2, 32)
    s.own_k[0, 0, 0, 3] = float("nan")
    bad = s.run(backend, device).isnan().flatten(1).any(1)
    assert bad.nonzero().flatten().tolist() == [0]


@each_backend("shared_prefix_decode")
def test_no_slots(backend: str, device: str) -> None:
    s = step(4, 2, 32)
    none = replace(s, q=s.q[:0], own_lengths=s.own_lengths[:0], group_of=s.group_of[:0])
    assert none.run(backend, device).shape == (0, 4, 32)


def test_every_instruction_set(isa: str) -> None:
    if isa == "none":
        pytest.skip("the extension was not built")
    s = step(4, 2, 64)
    check(s.run("cpu", "cpu"), s, 0.125)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    pytest.importorskip("visa_kernels._C")
    s = step(4, 2, 32)
    want = s.run("cpu", "cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert s.run("cpu", "cpu").equal(want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_in_one_graph() -> None:
    pytest.importorskip("visa_kernels._C")
    torch.compiler.reset()
    s = step(4, 2, 32)
    compiled = torch.compile(shared_prefix_decode, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**vars(s)), s.run("cpu", "cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own_lengths": torch.full((9,), 76)}, r"own_lengths\[0\] is 76.* holds 75"),
        ({"prompt_lengths": torch.tensor([1, 2, 3, -1, 0])}, r"prompt_lengths\[3\] is -1"),
        ({"group_of": torch.full((9,), 5)}, r"group_of\[0\] is 5 of 5 groups"),
        ({"group_of": torch.zeros(9)}, r"group_of must be int64 of shape \[9\]"),
        ({"own_lengths": torch.ones(8, dtype=torch.int64)}, r"own_lengths must be int64"),
        ({"q": torch.zeros(9, 5, 32)}, "multiple of the key heads"),
        ({"q": torch.zeros(9, 4, 31)}, r"q must be \[S, H, D\]"),
        ({"q": torch.zeros(12, 4, 32)}, r"\[S or more, Hk, C, D\]"),
        ({"q": torch.zeros(9, 4, 32).half()}, "one floating type"),
    ],
)
def test_refused(change: dict[str, Tensor], message: str) -> None:
    pytest.importorskip("visa_kernels._C")
    with pytest.raises(ValueError, match=message):
        replace(step(4, 2, 32), **change).run("cpu", "cpu")
