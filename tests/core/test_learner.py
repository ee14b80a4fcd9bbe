"""A learner of one rank: forward, backward and step, checkpointing, buckets, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lms import KINDS, random_lm, random_rows
from visa_core.config import SFTConfig
from visa_core.training.checkpoint import load_checkpoint, save_checkpoint
from visa_core.training.distributed import RankLost, World, joined_world, start_world
from visa_core.training.learner import Learner, make_learner

CPU = torch.device("cpu")


def settings(**more: object) -> SFTConfig:
    given = {"model": Path("m"), "data": ("d",), "out": Path("o"), "lr": 0.01, "device": "cpu"}
    return SFTConfig(**given | {"max_prompt": 8, "max_completion": 8} | more)


def loss_of(model: nn.Module, rows: list[list[int]]) -> torch.Tensor:
    ids = torch.tensor(rows)
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def advance(learner: Learner, updates: range) -> list[float]:
    losses = []
    for update in updates:
        loss = learner.forward(loss_of, random_rows((12, 12), seed=update))
        learner.backward(loss)
        learner.step(update)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_trains_as_torch_adamw_does(kind: str) -> None:
    learner = make_learner(
        random_lm(kind), settings(schedule="constant", warmup=0.0), 5, World(CPU)
    )
    assert learner.keeps_storage and learner.readable is learner.model
    model = random_lm(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    expected = []
    for update in range(5):
        loss = loss_of(model, random_rows((12, 12), seed=update))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert advance(learner, range(5)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_continues_exactly_from_a_checkpoint(weights: str, tmp_path: Path) -> None:
    def start() -> Learner:
        dtype = torch.bfloat16 if weights == "bf16" else torch.float32
        model = random_lm("qwen3").to(dtype)
        return make_learner(model, settings(weights=weights), 6, World(CPU))

    whole = advance(start(), range(6))
    first = start()
    advance(first, range(3))
    path = save_checkpoint(tmp_path, 3, {"learner": first.state_dict()})
    again = start()
    again.load_state_dict(load_checkpoint(path)[1]["learner"])
    assert advance(again, range(3, 6)) == whole[3:]


def test_gradient_checkpointing_computes_layers_again_and_changes_no_gradient() -> None:
    plain = make_learner(random_lm("qwen3"), settings(), 3, World(CPU))
    saving = make_learner(random_lm("qwen3"), settings(gradient_checkpointing=True), 3, World(CPU))
    calls = [0]
    layer = saving.model.model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    assert not saving.model.training, "a policy stays in evaluation mode"
    assert advance(saving, range(3)) == advance(plain, range(3))
    assert calls[0] == 6, "each layer twice a step"
    assert not any(m.training for m in saving.model.modules()), "sampling keeps its cache"


def test_buckets_hold_every_weight_once_and_keep_the_limit() -> None:
    model = random_lm("qwen3")
    learner = make_learner(model, settings(), 1, World(CPU))
    buckets = list(learner.buckets(max_bytes=4000))
    assert len(buckets) > 3
    assert all(len(b) == 1 or sum(t.nbytes for _, t in b) <= 4000 for b in buckets)
    found = [pair for bucket in buckets for pair in bucket]
    assert [name for name, _ in found] == [name for name, _ in model.named_parameters()]
    for name, tensor in found:
        assert tensor.data_ptr() == model.get_parameter(name).data_ptr(), "no copy where whole"


def test_one_rank_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = start_world("cpu")
    assert (world.rank, world.size, world.is_main, world.share(7)) == (0, 1, True, range(7))
    assert world.sum(torch.tensor([2.0])).item() == 2.0 and world.most(3) == 3
    assert world.average({"loss": 1.0, "max_x": 2.0}, 5) == {"loss": 1.0, "max_x": 2.0}
    with pytest.raises(RuntimeError, match="reset by peer"), world.guard():
        raise RuntimeError("connection reset by peer")


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 7, 16])
def test_shares_are_contiguous_and_even(size: int, n: int) -> None:
    shares = [World(CPU, rank, size).share(n) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_lost_rank_is_a_sentence_and_other_errors_stay() -> None:
    world = World(CPU, rank=1, size=4)
    with pytest.raises(RankLost, match=r"rank 1 of 4 has lost another rank in step 7 .*--resume"):
        with world.guard(7):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]")
    for error in (RuntimeError("mat1 and mat2 shapes"), ValueError("x"), FileNotFoundError("y")):
        with pytest.raises(type(error)), world.guard(7):
            raise error


def test_settings_that_do_not_go_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--deepspeed-config needs --zero"):
        settings(deepspeed_config=Path("x.json"))
    with pytest.raises(ValueError, match="--optimizer muon needs whole matrices"):
        settings(zero=2, optimizer="muon")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE is set and RANK is not: start"):
        start_world("cpu")


def test_a_process_group_of_somebody_else_outlives_a_stage() -> None:
    begun = not torch.distributed.is_initialized()
    if begun:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with joined_world("cpu"):
            pass
        assert torch.distributed.is_initialized()
    finally:
        if begun:
            torch.distributed.destroy_process_group()
