"""Reward scores as an op of torch: arguments, compile, export, graphs, large offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.backends import each_backend
from tests.ops.reward_rows import RAGGED, batch
from visa_kernels import Pieces, RewardScores, reward_scores

on_each = each_backend("reward_scores")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "mean"}, "form must be one of sum, product, gated, got 'mean'"),
        ({"scale": "std"}, "scale must be one of"),
        ({"values": torch.zeros(8, 4)}, r"must be \[B, K\], got \(8, 4\) and \(8, 10\)"),
        ({"values": torch.zeros(5, 10)}, "5 rows of values for 8 targets: give value_rows"),
        ({"values": torch.zeros(8, 10).long()}, "values must be floating point"),
        ({"fwd": torch.zeros(5, 3)}, "fwd has 5 rows for 8 targets: give fwd_pieces"),
        ({"bwd": torch.zeros(8, 3, 1)}, "bwd must be probabilities"),
        ({"worst": torch.zeros(8, dtype=torch.bool, device="meta")}, "worst is on meta, but"),
        ({"entailment": 3}, "entailment is column 3 of fwd, which has 3"),
        ({"penalty": torch.zeros(3)}, r"penalty must be \[8\]"),
        ({"worst": torch.zeros(8)}, "worst must be bool"),
        ({"group_size": 3}, "8 completions are no multiple of group_size 3"),
        ({"group_size": 2, "group_ids": torch.zeros(8)}, "give one of group_size"),
        ({"group_ids": torch.zeros(3)}, r"group_ids must be \[8\]"),
        ({"cu_groups": torch.tensor([0, 5])}, "cu_groups must rise from 0 to 8"),
        ({"cu_groups": torch.tensor([0, 5, 4, 8])}, "cu_groups must not fall"),
        ({"value_rows": torch.arange(1, 9)}, r"value_rows must lie in -1 \.\. 7, got 1 \.\. 8"),
        (
            {"fwd_pieces": Pieces(torch.arange(4), torch.arange(9))},
            r"fwd_pieces.sentences must be \[9\]",
        ),
        (
            {"fwd_pieces": Pieces(torch.arange(9), torch.arange(9) + 1)},
            "fwd_pieces.chunks must rise from 0 to 8",
        ),
        (
            {"bwd_pieces": Pieces(torch.arange(9), torch.arange(9), torch.arange(8) + 2)},
            "bwd_pieces.rows must lie in",
        ),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_scores(**(batch(8) | change))


@on_each
def test_registered_as_a_torch_op(backend: str, device: str) -> None:
    """opcheck, one compiled graph, and an exported program that keeps the op."""
    if backend == "reference":
        pytest.skip("the reference is traced through, it is no op of its own")
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch(12).items()}
    tensors = [inputs.pop(name) for name in ("values", "targets", "fwd", "bwd")]

    def score(*tensors: torch.Tensor) -> RewardScores:
        return reward_scores(*tensors, **inputs, group_size=4, backend=backend)

    plain = score(*tensors)
    torch.compiler.reset()
    compiled = torch.compile(score, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(tuple(compiled(*tensors)), tuple(plain))

    class Module(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> RewardScores:
            return score(*tensors)

    program = torch.export.export(Module(), tuple(tensors))
    assert "visa_kernels.reward_scores" in str(program.graph)
    torch.testing.assert_close(tuple(program.module()(*tensors)), tuple(plain))


@on_each
def test_opcheck(backend: str, device: str) -> None:
    if backend == "reference":
        pytest.skip("the reference is traced through, it is no op of its own")
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch(6).items()}
    named = dict(
        inputs, value_rows=None, cu_groups=None, order=None, group_size=3, activation="clamp",
        limit=1.0, form="sum", consistency="min", w_val=1.0, w_sem=1.0, gate=0.5, neutral_norm=0.1,
        distance_weight=0.1, non_finite="nan", scale="group", eps=1e-4, backend=backend,
        **{f"{way}_{part}": None for way in ("fwd", "bwd") for part in Pieces._fields},
    )  # fmt: skip
    torch.library.opcheck(torch.ops.visa_kernels.reward_scores.default, (), named)


@pytest.mark.parametrize("kind", RAGGED)
def test_reference_in_one_compiled_graph(kind: str) -> None:
    inputs = batch(60)
    torch.compiler.reset()
    compiled = torch.compile(reward_scores, backend="aot_eager", fullgraph=True)
    options = inputs | RAGGED[kind] | {"backend": "reference"}
    torch.testing.assert_close(tuple(compiled(**options)), tuple(reward_scores(**options)))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_without_a_sync_and_in_a_graph(backend: str, scale: str) -> None:
    """4,096 completions: no read-back, and a replayed graph gives the same scores as a call."""
    inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch(4096).items()}

    def score() -> RewardScores:
        return reward_scores(**inputs, group_size=8, scale=scale, backend=backend)

    plain = score()
    torch.cuda.set_sync_debug_mode("error")
    try:
        score()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = score()
    for _ in range(3):
        graph.replay()
        torch.testing.assert_close(tuple(replayed), tuple(plain), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_offsets_past_two_to_the_31(backend: str) -> None:
    rows, dims = 4100, 2**19 + 8
    values = torch.zeros(rows, dims, dtype=torch.bfloat16, device="cuda")
    narrow = batch(rows)
    values[:, :10] = narrow["values"]
    inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in narrow.items()}
    got = reward_scores(**(inputs | {"values": values[:, :10]}), group_size=4, backend=backend)
    same = inputs | {"values": values[:, :10].clone()}
    wanted = reward_scores(**same, group_size=4, backend=backend)
    torch.testing.assert_close(tuple(got), tuple(wanted), rtol=0, atol=0)
