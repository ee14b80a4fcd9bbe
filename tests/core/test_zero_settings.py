"""Settings that DeepSpeed is given: ours, the user's file over them, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lms import random_lm
from visa_core.config import SFTConfig
from visa_core.training.distributed import World
from visa_core.training.learner import make_learner
from visa_core.training.zero import deepspeed_settings, import_deepspeed

CPU = torch.device("cpu")


def config(**more: Any) -> SFTConfig:
    given = {"model": Path("m"), "data": ("d",), "out": Path("o"), "zero": 2, "device": "cpu"}
    return SFTConfig(**given | more)


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_ours_are_in_it_and_the_users_file_lies_over_them(tmp_path: Path) -> None:
    model = random_lm("qwen3").to(torch.bfloat16)
    plain = deepspeed_settings(config(max_grad_norm=0.5, offload=True), model)
    assert plain["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert plain["bf16"] == {"enabled": True} and plain["gradient_clipping"] == 0.5
    more = {"zero_optimization": {"reduce_bucket_size": 7}, "steps_per_print": 5}
    path = written(tmp_path / "ds.json", more)
    found = deepspeed_settings(config(deepspeed_config=path), model)
    assert found["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 7}
    assert found["steps_per_print"] == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ([1], "must hold one JSON object"),
        ({"optimizer": {}, "train_batch_size": 4}, "sets optimizer, train_batch_size, which"),
        ({"zero_optimization": {"stage": 3}}, "asks for stage 3 and --zero for 2"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path: Path, text: Any, said: str) -> None:
    path = written(tmp_path / "ds.json", text)
    with pytest.raises(ValueError, match=said):
        deepspeed_settings(config(deepspeed_config=path), random_lm("qwen3"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match="--zero needs the package deepspeed: pip install"):
        import_deepspeed(World(CPU))


def test_a_checkpoint_of_zero_is_no_checkpoint_without_it() -> None:
    learner = make_learner(random_lm("qwen3"), config(zero=0), 1, World(CPU))
    with pytest.raises(ValueError, match="written under another --zero"):
        learner.load_state_dict({"masters": {}, "moments": {}, "frozen": {}, "updates": 1})
