"""SFT's loss is the mean cross entropy of the completions' tokens, however the rows are split."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.lms import KINDS, PAD, random_lm, random_rows
from visa_core.config import SFTConfig
from visa_trainers.sft import Row, micro_batches, nll

CONFIG = SFTConfig(model=Path("m"), data=("embedded",), out=Path("o"), precision="fp32")
ROWS = [
    Row(prompt, completion)
    for prompt, completion in zip(
        random_rows((5, 1, 9, 4, 7, 2), seed=1),
        random_rows((3, 8, 1, 6, 2, 5), seed=2),
        strict=True,
    )
]
TOKENS = sum(len(row.completion) for row in ROWS)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return random_lm(request.param, seed=4, std=0.3)


def padded_cross_entropy(model: nn.Module, rows: list[Row]) -> torch.Tensor:
    """Right-padded rows as plain training code has them: prompts and padding are not predicted."""
    texts = [torch.tensor(row.prompt + row.completion) for row in rows]
    labels = [torch.tensor([-100] * len(row.prompt) + row.completion) for row in rows]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
    wanted = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters()}


def backward(model: nn.Module, rows: list[Row], tokens: int) -> torch.Tensor:
    """Add one micro-batch's gradients; its part of the step's loss."""
    loss = nll(model, rows, tokens, PAD, CONFIG)
    loss.backward()
    return loss.detach()


def step(model: nn.Module, parts: list[list[Row]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step over these micro-batches, on a copy of the model."""
    trained = copy.deepcopy(model)
    loss = sum(backward(trained, part, TOKENS).item() for part in parts)
    return loss, gradients(trained)


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    for name, grad in one.items():
        assert (two[name] - grad).abs().max() <= 1e-5 * grad.abs().max(), name


def test_the_loss_is_padded_cross_entropy(model: nn.Module) -> None:
    loss, found = step(model, [ROWS])
    expected = padded_cross_entropy(model, ROWS)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients(model), found)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulation_equals_one_batch(model: nn.Module, size: int) -> None:
    """Rows differ in length, so a mean of micro-batch means would be wrong."""
    whole, expected = step(model, [ROWS])
    parts = [ROWS[i : i + size] for i in range(0, len(ROWS), size)]
    loss, found = step(model, parts)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert_close(expected, found)
    means = [padded_cross_entropy(model, part).item() for part in parts]
    assert abs(sum(means) / len(means) - whole) > 1e-3, "the rows must tell the two apart"


@pytest.mark.parametrize("budget", [11, 16, 25, 1000])
def test_packing_into_a_token_budget_changes_nothing(model: nn.Module, budget: int) -> None:
    parts = list(micro_batches(ROWS, budget))
    sizes = [sum(len(r.prompt) + len(r.completion) for r in part) for part in parts]
    assert max(sizes) <= budget and len(parts) <= 2 * sum(sizes) / budget + 1
    assert sorted(map(id, ROWS)) == sorted(id(row) for part in parts for row in part)
    loss, found = step(model, parts)
    whole, expected = step(model, [ROWS])
    assert loss == pytest.approx(whole, rel=1e-6)
    assert_close(expected, found)


def test_the_prompt_is_read_but_not_learned(model: nn.Module) -> None:
    """Another prompt token changes the loss; the loss of its own prediction is no part of it."""
    row = ROWS[0]
    changed = Row(
        [3, *row.prompt[1:]] if row.prompt[0] != 3 else [4, *row.prompt[1:]], row.completion
    )
    losses = [
        backward(copy.deepcopy(model), [r], len(row.completion)).item() for r in (row, changed)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(padded_cross_entropy(model, [row]).item(), rel=1e-5)
