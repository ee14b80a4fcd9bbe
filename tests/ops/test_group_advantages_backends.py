"""Group advantages on every backend: ragged groups in any order, masks, sizes, bad rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.backends import each_backend
from visa_kernels import group_advantages
from visa_kernels.group_advantages import torch_op

EPS = 1e-4
on_every_backend = each_backend("group_advantages")
each_scale = pytest.mark.parametrize("scale", ["group", "batch", "none"])


def by_hand(rewards: Tensor, groups: Tensor, scale: str, mask: Tensor) -> np.ndarray:
    """(r - mean) / (std + eps) over counted rows, row by row in float64; 0 for the others."""
    r, g, m = rewards.double().numpy(), groups.numpy(), mask.numpy()
    out = np.zeros(len(r))
    for row in np.flatnonzero(m):
        own = r[(g == g[row]) & m]
        out[row] = r[row] - own.mean()
        spread = {"group": own, "batch": r[m], "none": None}[scale]
        if spread is not None:
            out[row] /= (spread.std(ddof=1) if len(spread) > 1 else 0.0) + EPS
    return out


@on_every_backend
@each_scale
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wide", [False, True], ids=["dense", "sparse"])
def test_ragged_groups_in_any_order(
    backend: str, device: str, scale: str, masked: bool, wide: bool
) -> None:
    groups = torch.repeat_interleave(torch.tensor([7, -3, 40, 2]), torch.tensor([8, 1, 5, 2]))
    groups = groups[torch.randperm(16)] * (2**40 if wide else 1)
    rewards = torch.randn(16) + 1000
    mask = torch.rand(16) > 0.3 if masked else torch.ones(16, dtype=torch.bool)
    got = group_advantages(
        torch.where(mask, rewards, torch.nan).to(device),
        groups.to(device),
        scale,
        backend=backend,
        mask=mask.to(device) if masked else None,
    )
    assert got.dtype == torch.float32
    expected = by_hand(rewards, groups, scale, mask)
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=1e-6, atol=1e-7)


@on_every_backend
@each_scale
@pytest.mark.parametrize("size", [1, 5, 90])
def test_groups_of_one_size(backend: str, device: str, scale: str, size: int) -> None:
    rewards = torch.randn(90, dtype=torch.float64)
    mask = torch.rand(90) > 0.2
    got = group_advantages(
        rewards.to(device), scale=scale, group_size=size, mask=mask.to(device), backend=backend
    )
    assert got.dtype == torch.float64
    expected = by_hand(rewards, torch.arange(90) // size, scale, mask)
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=1e-7, atol=1e-12)


@on_every_backend
def test_many_rows_by_id(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of rows that are compared with each other, Triton sorts them first."""
    if backend == "triton":
        from visa_kernels.group_advantages import triton_kernel

        monkeypatch.setattr(triton_kernel, "MAX_ROWS_BY_ID", 20)
    rewards, groups = torch.randn(60), torch.randint(-4, 5, (60,), dtype=torch.int32)
    got = group_advantages(rewards.to(device), groups.to(device), backend=backend)
    expected = by_hand(rewards, groups, "group", torch.ones(60, dtype=torch.bool))
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=1e-6, atol=1e-7)


@on_every_backend
def test_exact_zeros(backend: str, device: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        rewards = torch.tensor([0.1] * 7 + [3.0], dtype=dtype, device=device)
        by_id = torch.tensor([4] * 7 + [9], device=device)
        assert group_advantages(rewards, by_id, backend=backend).tolist() == [0.0] * 8
        by_size = group_advantages(rewards[:7], group_size=7, backend=backend)
        assert by_size.tolist() == [0.0] * 7
    nothing = torch.zeros(3, dtype=torch.bool, device=device)
    rewards = torch.full((3,), torch.nan, device=device)
    for scale in ("group", "batch", "none"):
        got = group_advantages(rewards, scale=scale, group_size=3, mask=nothing, backend=backend)
        assert got.tolist() == [0.0] * 3


@on_every_backend
def test_empty(backend: str, device: str) -> None:
    rewards = torch.zeros(0, device=device)
    ids = torch.zeros(0, dtype=torch.int64, device=device)
    assert group_advantages(rewards, ids, backend=backend).shape == (0,)
    assert group_advantages(rewards, group_size=4, backend=backend).shape == (0,)


@on_every_backend
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(backend: str, device: str, bad: float) -> None:
    rewards = torch.tensor([0.0, 1.0, bad, 3.0, 4.0, 6.0], device=device)
    with pytest.raises(ValueError, match="rewards must be finite: 1 of 6 are not, rows 2 "):
        group_advantages(rewards, group_size=3, backend=backend)
    for ids in (None, torch.tensor([0, 0, 0, 1, 1, 1], device=device)):
        size = 3 if ids is None else None
        for scale in ("group", "none"):
            got = group_advantages(
                rewards, ids, scale, backend=backend, group_size=size, check="nan"
            )
            assert got.isnan().tolist() == [True] * 3 + [False] * 3
        got = group_advantages(rewards, ids, "batch", backend=backend, group_size=size, check="nan")
        assert got.isnan().all()


@on_every_backend
def test_strided_and_shuffled_rows_agree(backend: str, device: str) -> None:
    rewards, ids = torch.randn(24, device=device), torch.arange(24, device=device) // 4
    expected = group_advantages(rewards, group_size=4, backend=backend)
    strided = torch.stack([rewards, rewards], 1)[:, 0]
    torch.testing.assert_close(group_advantages(strided, ids, backend=backend), expected)
    order = torch.randperm(24).to(device)
    got = group_advantages(rewards[order], ids[order], backend=backend)
    torch.testing.assert_close(got, expected[order])


@pytest.mark.parametrize(
    "backend,device", [c for c in on_every_backend.args[1] if c.values[0] != "reference"]
)
def test_opcheck(backend: str, device: str) -> None:
    rewards, ids = torch.randn(6, device=device), torch.arange(6, device=device) // 2
    mask = torch.ones(6, dtype=torch.bool, device=device)
    for groups, kept, size in ((ids, mask, 0), (None, None, 3)):
        arguments = (rewards, groups, kept, size, "group", EPS, False, backend)
        torch.library.opcheck(torch_op._advantages, arguments)


@pytest.mark.slow
@on_every_backend
def test_compiles_into_one_graph(backend: str, device: str) -> None:
    torch.compiler.reset()
    ids = torch.tensor([0, 1, 0, 1], device=device)

    def advantages(rewards: Tensor) -> Tensor:
        return group_advantages(rewards, ids, backend=backend, check="nan") * 2

    rewards = torch.randn(4, device=device)
    compiled = torch.compile(advantages, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(rewards), advantages(rewards))


@pytest.mark.gpu
@each_scale
def test_no_sync_without_the_check(scale: str) -> None:
    rewards, ids = torch.randn(64, device="cuda"), torch.randint(0, 9, (64,), device="cuda")
    group_advantages(rewards, ids, scale, check="nan")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for by in ({"group_ids": ids}, {"group_size": 8}):
            group_advantages(rewards, scale=scale, check="nan", **by)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_ids": torch.zeros(4, dtype=torch.int64)}, "either group_ids or group_size"),
        ({"group_size": None}, "either group_ids or group_size"),
        ({"group_size": 3}, "must divide the number of rows, 4, got 3"),
        ({"mask": torch.ones(4)}, "must be bool"),
        ({"check": "off"}, "check must be one of raise, nan, got 'off'"),
        ({"rewards": torch.zeros(4, dtype=torch.int64)}, "floating point, got .* torch.int64"),
        ({"group_ids": torch.zeros(4), "group_size": None}, "must be integers, got torch.float32"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(**({"rewards": torch.zeros(4), "group_size": 2} | change))
