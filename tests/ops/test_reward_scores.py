"""Reward scores against float64 loops and against visa_core's RewardModel; pieces, groups, NaN."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.ops.backends import each_backend
from visa_kernels import NON_FINITE, Pieces, RewardScores, reward_scores
from visa_kernels.backend import BackendError

on_each = each_backend("reward_scores")
SCORES = ("reward", "cosine", "l2", "fwd", "bwd", "semantic")


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def cosine(v: np.ndarray, t: np.ndarray) -> float:
    zero = [np.linalg.norm(x) <= 1e-8 for x in (v, t)]
    if any(zero):
        return float(all(zero))
    return float(np.clip(v @ t / np.linalg.norm(v) / np.linalg.norm(t), -1, 1))


def by_hand(inputs: dict[str, Any], b: int) -> dict[str, float]:
    """One row in float64, formulas written out from the docstring."""
    get = {"limit": 1.0, "w_val": 1.0, "w_sem": 1.0, "gate": 0.5, "neutral_norm": 0.0} | inputs
    v, t = (get[name][b].double().numpy() for name in ("values", "targets"))
    if get.get("activation") == "tanh":
        v = get["limit"] * np.tanh(v)
    if get.get("activation") == "clamp":
        v = np.clip(v, -get["limit"], get["limit"])
    f, w = (float(softmax(get[name][b].double().numpy())[1]) for name in ("fwd", "bwd"))
    kind = get.get("consistency", "geometric")
    semantic = {"geometric": math.sqrt(f * w), "min": min(f, w), "published": (2 * f + w) / 3}[kind]
    paid = cosine(v * (np.linalg.norm(v) >= get["neutral_norm"]), t)
    form = get.get("form", "sum")
    if form == "product":
        reward = ((1 + paid) / 2) ** get["w_val"] * semantic ** get["w_sem"]
    else:
        paid = paid if form == "sum" or semantic >= get["gate"] else -1.0
        reward = get["w_val"] * paid + get["w_sem"] * semantic
    l2 = float(np.linalg.norm(v - t))
    floor = 0.0 if form == "product" else -get["w_val"]
    reward -= get.get("distance_weight", 0.0) * l2 + float(get["penalty"][b])
    reward = floor if get["worst"][b] else max(reward, floor)
    return dict(reward=reward, cosine=cosine(v, t), l2=l2, fwd=f, bwd=w, semantic=semantic)


def advantage_by_hand(rewards: np.ndarray, groups: np.ndarray, scale: str, eps: float = 1e-4):
    """(r - mean) / (std + eps) row by row, in float64, from the rewards that were returned."""
    out = np.zeros(len(rewards))
    for row, group in enumerate(groups):
        own = rewards[groups == group]
        std = own.std(ddof=1) if len(own) > 1 else 0.0
        std = rewards.std(ddof=1) if scale == "batch" else std
        out[row] = (rewards[row] - own.mean()) / (1.0 if scale == "none" else std + eps)
    return out


def batch(rows: int, dims: int = 10, labels: int = 3) -> dict[str, Any]:
    """Random rows, among them zero values, zero targets, both, whispers, and texts set to worst."""
    values, targets = torch.randn(rows, dims), torch.randn(rows, dims)
    values[1::7], targets[2::7], values[3::14] = 0.0, 0.0, values[3::14] * 0.02
    targets[1::14] = 0.0
    return {
        "values": values,
        "targets": targets,
        "fwd": torch.randn(rows, labels) * 3,
        "bwd": torch.randn(rows, labels) * 3,
        "entailment": 1,
        "penalty": torch.rand(rows) * 0.2,
        "worst": torch.rand(rows) < 0.1,
    }


def run(inputs: dict[str, Any], backend: str, device: str, **options: Any) -> RewardScores:
    def moved(x: Any) -> Any:
        if isinstance(x, Pieces):
            return Pieces(*(moved(part) for part in x))
        return x.to(device) if isinstance(x, torch.Tensor) else x

    every = {name: moved(x) for name, x in (inputs | options).items()}
    found = reward_scores(**every, backend=backend)
    return RewardScores(*(None if x is None else x.cpu() for x in found))


FORMS = list(itertools.product(("sum", "product", "gated"), ("geometric", "min", "published")))


@on_each
@pytest.mark.parametrize("form,consistency", FORMS)
def test_every_form_against_loops(
    backend: str, device: str, form: str, consistency: str
) -> None:
    inputs = batch(42) | {
        "form": form,
        "consistency": consistency,
        "activation": {"sum": "clamp", "product": "none", "gated": "tanh"}[form],
        "w_val": 1.0 if consistency == "min" else 1.7,
        "w_sem": 0.6,
        "limit": 0.9,
        "neutral_norm": 0.25,
        "distance_weight": 0.15,
    }
    got = run(inputs, backend, device, group_size=6)
    expected = [by_hand(inputs, b) for b in range(42)]
    for name in SCORES:
        wanted = [row[name] for row in expected]
        np.testing.assert_allclose(getattr(got, name), wanted, rtol=3e-6, atol=1e-6, err_msg=name)
    assert not got.non_finite.any()
    groups = np.arange(42) // 6
    wanted = advantage_by_hand(got.reward.double().numpy(), groups, "group")
    np.testing.assert_allclose(got.advantage, wanted, rtol=1e-6, atol=1e-6)


@on_each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows,dims,labels", [(1, 1, 2), (33, 20, 3), (130, 10, 5)])
def test_shapes_types_and_strides(
    backend: str, device: str, rows: int, dims: int, labels: int, dtype: torch.dtype
) -> None:
    inputs = batch(rows, dims, labels)
    for name in ("values", "fwd", "bwd"):
        wide = torch.full((2 * rows, 2 * inputs[name].shape[1]), math.nan, dtype=dtype)
        view = wide[::2, ::2] if name == "values" else wide[::2, : inputs[name].shape[1]]
        inputs[name] = view.copy_(inputs[name])
    got = run(inputs, backend, device)
    assert got.advantage is None
    expected = [by_hand(inputs, b) for b in range(rows)]
    for name in SCORES:
        wanted = [row[name] for row in expected]
        np.testing.assert_allclose(getattr(got, name), wanted, rtol=3e-6, atol=1e-6, err_msg=name)


RAGGED = {
    "size": dict(group_size=10),
    "long": dict(group_size=60),
    "ends": dict(cu_groups=torch.tensor([0, 1, 1, 7, 47, 60])),
    "ids": dict(group_ids=torch.tensor([7, -3, 40, 7, 7, 2] * 10)),
}


@on_each
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("kind", RAGGED)
def test_groups(backend: str, device: str, kind: str, scale: str) -> None:
    options = RAGGED[kind]
    groups = {
        "size": np.arange(60) // 10,
        "long": np.zeros(60),
        "ends": np.repeat([0, 2, 3, 4], [1, 6, 40, 13]),
        "ids": np.array([7, -3, 40, 7, 7, 2] * 10),
    }[kind]
    got = run(batch(60), backend, device, **options, scale=scale)
    wanted = advantage_by_hand(got.reward.double().numpy(), groups, scale)
    np.testing.assert_allclose(got.advantage, wanted, rtol=1e-6, atol=1e-6)


@on_each
def test_equal_rewards_and_groups_of_one_give_exact_zeros(backend: str, device: str) -> None:
    one = batch(1)
    inputs = {
        name: x.repeat(9, *[1] * (x.ndim - 1)) if isinstance(x, torch.Tensor) else x
        for name, x in one.items()
    }
    for scale in ("group", "none", "batch"):
        got = run(inputs, backend, device, cu_groups=torch.tensor([0, 8, 9]), scale=scale)
        assert got.advantage.tolist() == [0.0] * 9
    assert run(one, backend, device, group_size=1, scale="batch").advantage.tolist() == [0.0]


@on_each
def test_no_completions(backend: str, device: str) -> None:
    got = run(batch(0), backend, device, group_size=8)
    assert all(x.shape == (0,) for x in got)
    nothing = Pieces(torch.tensor([0]), torch.tensor([0]))
    got = run(batch(0), backend, device, fwd_pieces=nothing, value_rows=torch.zeros(0).long())
    assert got.reward.shape == (0,)


@on_each
def test_extreme_logits(backend: str, device: str) -> None:
    inf = math.inf
    logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, -inf, -inf], [-inf, -inf, 3.0], [-1e4, 1e4, 0.0]])
    inputs = batch(4) | {"fwd": logits, "bwd": torch.zeros(4, 3), "entailment": 0}
    got = run(inputs, backend, device)
    assert got.fwd.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert not got.non_finite.any()


@on_each
@pytest.mark.parametrize("probabilities", [False, True])
def test_pieces(backend: str, device: str, probabilities: bool) -> None:
    """Best chunk, mean of sentences, repeated rows, a blank text (no sentence), a row of -1."""
    logits = torch.randn(6, 3)
    scores = logits.softmax(-1)[:, 2] if probabilities else logits
    pieces = Pieces(
        sentences=torch.tensor([0, 2, 2, 5, 6]),
        chunks=torch.tensor([0, 2, 3, 3, 6, 7, 8]),
        rows=torch.tensor([0, 3, 5, 1, 1, 4, 2, -1]),
    )
    p = logits.double().softmax(-1)[:, 2].tolist()
    expected = [
        (max(p[0], p[3]) + p[5]) / 2,
        0.0,
        (0.0 + max(p[1], p[1], p[4]) + p[2]) / 3,
        0.0,
    ]
    inputs = batch(4) | {"entailment": 2, "fwd": scores, "bwd": scores}
    straight = Pieces(torch.tensor([0, 1, 2, 3, 6]), torch.arange(7))
    got = run(inputs, backend, device, fwd_pieces=pieces, bwd_pieces=straight)
    np.testing.assert_allclose(got.fwd, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got.bwd, [*p[:3], sum(p[3:]) / 3], rtol=1e-6, atol=1e-7)
    inputs["fwd"] = scores.clone().index_fill_(0, torch.tensor([3]), math.nan)
    got = run(inputs, backend, device, fwd_pieces=pieces, bwd_pieces=straight)
    assert got.non_finite.tolist() == [NON_FINITE["fwd"], 0, 0, 0]


@on_each
def test_value_rows_pick_and_leave_out(backend: str, device: str) -> None:
    inputs = batch(6)
    rows = torch.tensor([2, 0, -1, 2, 5, -1])
    picked = inputs | {"values": inputs["values"][rows] * (rows >= 0)[:, None]}
    got = run(inputs, backend, device, value_rows=rows)
    for name in SCORES:
        wanted = [by_hand(picked, b)[name] for b in range(6)]
        np.testing.assert_allclose(getattr(got, name), wanted, rtol=3e-6, atol=1e-6)


BROKEN = {
    "values": [("values", math.nan), ("values", math.inf)],
    "fwd": [("fwd", math.nan), ("fwd", math.inf)],
    "bwd": [("bwd", math.nan)],
    "targets": [("targets", -math.inf)],
    "penalty": [("penalty", math.nan), ("penalty", -math.inf)],
}


@on_each
@pytest.mark.parametrize("activation", ["none", "clamp", "tanh"])
def test_a_non_finite_input_is_flagged_and_spoils_its_group_alone(
    backend: str, device: str, activation: str
) -> None:
    for part, cases in BROKEN.items():
        for name, wrong in cases:
            inputs = batch(16)
            inputs["worst"][:] = False
            inputs[name][5] = inputs[name][5] * 0 + wrong
            got = run(inputs, backend, device, group_size=4, activation=activation)
            assert got.non_finite.tolist() == [0] * 5 + [NON_FINITE[part]] + [0] * 10
            assert torch.isnan(got.reward).tolist() == [row == 5 for row in range(16)]
            assert torch.isnan(got.advantage).tolist() == [row // 4 == 1 for row in range(16)]
    everywhere = run(inputs, backend, device, group_size=4, scale="batch")
    assert torch.isnan(everywhere.advantage).all()


@on_each
@pytest.mark.parametrize("form,least", [("sum", -1.5), ("gated", -1.5), ("product", 0.0)])
def test_a_non_finite_row_can_be_given_the_worst_reward(
    backend: str, device: str, form: str, least: float
) -> None:
    inputs = batch(8)
    inputs["values"][2, 3] = math.nan
    got = run(inputs, backend, device, group_size=8, form=form, w_val=1.5, non_finite="worst")
    assert got.reward[2].item() == least
    assert got.non_finite.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    wanted = advantage_by_hand(got.reward.double().numpy(), np.zeros(8), "group")
    np.testing.assert_allclose(got.advantage, wanted, rtol=1e-6, atol=1e-6)


@on_each
def test_a_reward_that_overflows_is_flagged(backend: str, device: str) -> None:
    inputs = batch(4) | {"penalty": torch.full((4,), -3e38), "w_val": 3e38, "w_sem": 3e38}
    inputs |= {"values": torch.ones(4, 2), "targets": torch.ones(4, 2)}
    inputs["worst"] = torch.tensor([False, True, False, False])
    got = run(inputs, backend, device)
    assert got.non_finite.tolist() == [32, 0, 32, 32]


def test_float64_is_kept_by_the_reference() -> None:
    inputs = {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in batch(9).items()
    }
    got = reward_scores(**inputs, group_size=3)
    assert got.reward.dtype == got.advantage.dtype == torch.float64
    wanted = [by_hand(inputs, b)["reward"] for b in range(9)]
    np.testing.assert_allclose(got.reward, wanted, rtol=1e-12)
    with pytest.raises(BackendError, match="reward_scores"):
        reward_scores(**inputs, backend="cpu")


@on_each
def test_float64_beside_float32_values(backend: str, device: str) -> None:
    inputs = batch(9)
    wide = {name: inputs[name].double() for name in ("targets", "fwd", "bwd", "penalty")}
    got, same = (run(x, backend, device, group_size=3) for x in (inputs | wide, inputs))
    assert got.reward.dtype == torch.float32
    torch.testing.assert_close(tuple(got), tuple(same), rtol=1e-6, atol=1e-7)


@on_each
def test_no_gradient_flows(backend: str, device: str) -> None:
    inputs = batch(4)
    for name in ("values", "targets", "fwd", "bwd", "penalty"):
        inputs[name].requires_grad_()
    got = run(inputs, backend, device, group_size=2)
    assert not any(x.requires_grad for x in got)


class Table:
    """A detector and a fact analyzer that read their scores from tensors, by the text's number."""

    def __init__(self, values: torch.Tensor, fwd: torch.Tensor, bwd: torch.Tensor) -> None:
        self.values, self.fwd, self.bwd = values, fwd, bwd

    def predict(self, queries: list[str], responses: list[str], batch_size: int = 64):
        return self.values[[int(text) for text in responses]]

    def consistency(self, sources: list[str], rewrites: list[str], batch_size: int = 64):
        from visa_core.types import Consistency

        rows = [int(text) for text in rewrites]
        fwd, bwd = self.fwd[rows], self.bwd[rows]
        return Consistency(fwd=fwd, bwd=bwd, mean=(2 * fwd + bwd) / 3)


OPTIONS = [
    dict(form=form, consistency=consistency, **others)
    for (form, consistency), others in zip(
        FORMS,
        itertools.cycle(
            [{}, {"distance_weight": 0.3, "w_val": 2.0}, {"neutral_norm": 0.0, "w_sem": 0.4}]
        ),
    )
]


@on_each
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['form']}-{o['consistency']}")
def test_it_equals_the_reward_model_of_visa_core(
    backend: str, device: str, options: dict[str, Any]
) -> None:
    from visa_core.config import RewardConfig
    from visa_core.rewards import RewardModel

    inputs = batch(40)
    values, targets = inputs["values"].clamp(-1, 1), inputs["targets"].clamp(-1, 1)
    fwd, bwd = (inputs[name].softmax(-1)[:, 1] for name in ("fwd", "bwd"))
    config = RewardConfig(**options)
    finished = torch.rand(40) < 0.8
    blank = torch.arange(40) % 9 == 4
    rewrites = ["  " if empty else str(row) for row, empty in enumerate(blank)]
    model = RewardModel(*[Table(values, fwd, bwd)] * 2, config)
    wanted = model.score(["q"] * 40, ["s"] * 40, rewrites, targets, finished)
    nothing_said = Pieces(torch.cat([torch.tensor([0]), (~blank).cumsum(0)]), torch.arange(37))
    texts = (~blank).nonzero().flatten()
    got = run(
        {"values": inputs["values"], "fwd": inputs["fwd"][texts], "bwd": inputs["bwd"][texts]},
        backend,
        device,
        targets=targets,
        activation="clamp",
        entailment=1,
        value_rows=torch.arange(40).masked_fill(blank, -1),
        fwd_pieces=nothing_said._replace(chunks=torch.arange(len(texts) + 1)),
        bwd_pieces=nothing_said._replace(chunks=torch.arange(len(texts) + 1)),
        worst=blank | ~finished,
        neutral_norm=config.neutral_norm,
        **{k: v for k, v in options.items() if k != "neutral_norm"},
    )
    for name in ("reward", "cosine", "semantic", "l2"):
        torch.testing.assert_close(
            getattr(got, name), getattr(wanted, name), rtol=2e-6, atol=5e-7, msg=name
        )
    torch.testing.assert_close(got.fwd, wanted.consistency.fwd)
    torch.testing.assert_close(got.bwd, wanted.consistency.bwd)


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
