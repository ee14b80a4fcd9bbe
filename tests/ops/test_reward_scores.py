"""Reward scores against float64 loops and against visa_core's RewardModel; pieces, groups, NaN."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.ops.backends import each_backend
from tests.ops.reward_rows import RAGGED, SCORES, advantage_by_hand, batch, by_hand, run
from visa_kernels import NON_FINITE, Pieces, reward_scores
from visa_kernels.backend import BackendError

on_each = each_backend("reward_scores")


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


@pytest.mark.parametrize("form", ["sum", "product", "gated"])
def test_every_instruction_set(isa: str, form: str) -> None:
    """Rows, labels and dimensions past a tile of 16, and past a whole number of tiles."""
    if isa == "none":
        pytest.skip("the extension is missing")
    inputs = batch(50, 35, 21) | {"form": form, "activation": "tanh", "w_val": 1.3}
    got = run(inputs, "cpu", "cpu")
    for name in SCORES:
        wanted = [by_hand(inputs, b)[name] for b in range(50)]
        np.testing.assert_allclose(getattr(got, name), wanted, rtol=4e-6, atol=1e-6, err_msg=name)


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
