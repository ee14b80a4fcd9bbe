"""Checkpoints: what goes in comes out, and a write that fails leaves what was there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from visa_core.training import checkpoint
from visa_core.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_file,
)


def same(one: object, other: object) -> bool:
    """Equality of trees, types of leaves and keys included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "none": None,
        "numbers": [1, 0.1, -1e-300, math.inf, True, 2**62],
        "text": "ünï",
        "empty": [{}, [], ""],
        "by number": {0: {"step": torch.tensor(3.0), "more": [torch.ones(2), None]}, 10: 5},
        "__tensor__": {"__dict__": torch.zeros(1)},
        "a/b": torch.tensor([1]),
        "a": {"b": torch.tensor([2])},
        "ints": {1: torch.tensor([3]), "1": torch.tensor([4])},
        "types": {
            str(t): torch.tensor([0, 1]).to(t)
            for t in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)
        },
        "views": [base, base.t(), base[1:, ::2], base[:0], torch.tensor(2.5)],
        "gradient": torch.ones(2, requires_grad=True).detach() * math.nan,
    }
    _, loaded = load_checkpoint(save_checkpoint(tmp_path, 7, tree))
    assert loaded["gradient"].isnan().all()
    del tree["gradient"], loaded["gradient"]
    assert same(tree, loaded)


def test_tied_weights_and_tuples(tmp_path: Path) -> None:
    shared = torch.ones(2)
    state = {"one": shared, "two": shared, "betas": (0.9, 0.95)}
    step, loaded = load_checkpoint(save_checkpoint(tmp_path, 1, state))
    assert step == 1 and loaded["betas"] == [0.9, 0.95]
    loaded["one"] += 1
    assert loaded["two"].equal(shared), "loaded tensors do not share memory"


def test_what_is_saved_is_a_copy(tmp_path: Path) -> None:
    weight = torch.zeros(2)
    path = save_checkpoint(tmp_path, 1, {"w": weight})
    weight += 1
    assert load_checkpoint(path)[1]["w"].tolist() == [0, 0]


def test_the_newest_two_are_kept_in_order(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path) == []
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, {"step": step})
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-00000010", "step-00000100"]
    assert load_checkpoint(list_checkpoints(tmp_path)[-1]) == (100, {"step": 100})


class Crash(BaseException):
    """Stands for a process that dies, as Ctrl-C does."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Crash()])
@pytest.mark.parametrize("place", ["save_file", "_sync", "_replace_folder"])
def test_a_torn_write_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, place: str
) -> None:
    save_checkpoint(tmp_path, 5, {"w": torch.zeros(2)})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, place, fail)
    with pytest.raises((CheckpointError, Crash)) as raised:
        save_checkpoint(tmp_path, 5, {"w": torch.ones(2)})
    if isinstance(error, OSError):
        assert isinstance(raised.value, CheckpointError)
        assert "step-00000005" in str(raised.value) and "No space left" in str(raised.value)
    monkeypatch.undo()
    kept = list_checkpoints(tmp_path)
    assert load_checkpoint(kept[-1])[1]["w"].tolist() == [0, 0]
    assert [path.name for path in kept[0].parent.iterdir()] == ["step-00000005"], "leftovers"


def test_a_name_like_a_checkpoint_in_writing_is_not_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {})
    (tmp_path / "checkpoints" / ".step-00000009.writing-1").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000005"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(
    tmp_path: Path, file: str, damage: str
) -> None:
    path = save_checkpoint(tmp_path, 5, {"w": torch.zeros(64)})
    if damage == "gone":
        (path / file).unlink()
    else:
        (path / file).write_bytes((path / file).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a readable checkpoint.*Delete that folder") as e:
        load_checkpoint(path)
    assert str(path) in str(e.value)


def test_small_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "run.json"
    write_file(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(checkpoint, "_sync", fail)
    with pytest.raises(CheckpointError, match="cannot write .*run.json: disk is gone"):
        write_file(path, "new")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["run.json"]
