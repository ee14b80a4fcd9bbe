"""float8 products of linear layers: against rounding by hand, training, and what is refused."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.lms import random_rows
from tests.vllm_build import attach
from visa_core.config import SFTConfig
from visa_core.training.fp8 import put_fp8, refuse_device

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}


@pytest.fixture
def torchao() -> None:
    attach()  # torchao stands beside vLLM
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")


def model(**changes: int) -> nn.Module:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES | changes, tie_word_embeddings=False))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """To float8 e4m3 by the largest magnitude and back, by hand."""
    scale = torch.finfo(torch.float8_e4m3fn).max / x.abs().max().double()
    return (x * scale.float()).to(torch.float8_e4m3fn).float() / scale.float()


def test_the_layers_below_the_head_round_both_factors(torchao: None) -> None:
    lm = model()
    exact = copy.deepcopy(lm)
    assert put_fp8(lm, emulate=True) == 2 * 7
    assert type(lm.lm_head) is nn.Linear
    x = torch.randn(16, 32)
    layer, plain = lm.model.layers[0].mlp.up_proj, exact.model.layers[0].mlp.up_proj
    found = layer(x)
    expected = rounded(x) @ rounded(plain.weight).T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (found - plain(x)).abs().max() > 1e-3, "it does round"


def test_training_follows_that_without_rounding_and_names_stay(torchao: None) -> None:
    lm, exact = model(), model()
    names = list(lm.state_dict())
    put_fp8(lm, emulate=True)
    assert list(lm.state_dict()) == names
    losses: list[list[float]] = []
    for trained in (lm, exact):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
        course = []
        for _ in range(12):
            ids = torch.tensor(random_rows((16, 16), seed=0))
            loss = trained(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            course.append(loss.item())
        losses.append(course)
    assert losses[0][-1] < 0.7 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=0.02, abs=0.1)
    assert losses[0] != losses[1]


def test_layers_whose_sizes_do_not_fit_stay(torchao: None) -> None:
    assert put_fp8(model(intermediate_size=40), emulate=True) == 2 * 4, "attention alone"
    with pytest.raises(ValueError, match="none of the 15 linear layers has sizes that are multip"):
        put_fp8(model(hidden_size=24, head_dim=12, intermediate_size=40), emulate=True)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--fp8 needs a GPU with float8 products .*, not cpu"):
        put_fp8(model())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(ValueError, match=r"9\.0 \(Hopper\) or newer; NVIDIA A100 has 8\.0"):
        refuse_device(torch.device("cuda", 0))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match="--fp8 needs the package torchao .*visa-core.fp8."):
        put_fp8(model(), emulate=True)


def test_sft_refuses_it_where_it_cannot_be(complaint, small_system: Path, tmp_path: Path) -> None:
    from tests import tiny

    tasks = tiny.write_tasks(tmp_path / "tasks.jsonl", n=4)
    command = tiny.sft_command(small_system / "rewriter", tmp_path / "out", "--fp8")
    said = complaint(*command, "--data", f"jsonl:{tasks}")
    assert "--fp8 needs a GPU with float8 products (Hopper or newer), not cpu" in said
    with pytest.raises(ValueError, match="no --zero 3 and no --lora.rank"):
        SFTConfig(model=Path("m"), data=("d",), out=Path("o"), zero=3, fp8=True)


@pytest.mark.gpu
def test_float8_on_a_gpu_follows_bf16(torchao: None) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no float8 products")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 128}
    lms = [model(**sizes).to("cuda", torch.bfloat16) for _ in range(2)]
    put_fp8(lms[0])
    ids = torch.randint(2, 48, (3, 21), device="cuda")  # 63 tokens: no multiple of 16
    losses = [lm(input_ids=ids, labels=ids, use_cache=False).loss for lm in lms]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.02)
    grads = [lm.model.layers[0].mlp.up_proj.weight.grad.float() for lm in lms]
    assert nn.functional.cosine_similarity(*(g.flatten() for g in grads), dim=0) > 0.98
