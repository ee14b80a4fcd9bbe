"""Optimizers of the rewriter: schedules by hand, which weights go where, exact continuation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lms import KINDS, random_lm
from visa_core.training.checkpoint import load_checkpoint, save_checkpoint
from visa_core.training.optim import Optimizer

MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def factors(total: int, **options: object) -> list[float]:
    optimizer = Optimizer(nn.Linear(2, 2), total, lr=1.0, **options)
    return [optimizer.factor(step) for step in range(total + 1)]


def test_warm_up_by_hand() -> None:
    """Two of ten steps: a third, two thirds, then the peak."""
    course = factors(10, warmup=0.2, schedule="constant")
    assert course == pytest.approx([1 / 3, 2 / 3, *[1.0] * 9])
    assert factors(4, schedule="constant") == [1.0] * 5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1.0, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125, 0.1]),
        (
            "cosine",
            [1 / 3, 2 / 3, 1.0]
            + [0.55 + 0.45 * math.cos(math.pi * k / 8) for k in range(1, 4)]
            + [0.55, *[0.55 - 0.45 * math.cos(math.pi * k / 8) for k in (3, 2, 1)], 0.1],
        ),
    ],
)
def test_decay_to_a_tenth_by_hand(schedule: str, expected: list[float]) -> None:
    assert factors(10, warmup=0.2, schedule=schedule) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 17])
def test_any_number_of_steps_stays_between_nothing_and_the_peak(schedule: str, total: int) -> None:
    course = factors(total, warmup=0.1, schedule=schedule)
    assert all(0.09 < factor <= 1.0 for factor in course)
    warm = math.ceil(0.1 * total)
    assert course[:warm] == sorted(course[:warm])
    assert course[warm:] == sorted(course[warm:], reverse=True)


def adamw_by_hand(
    weight: torch.Tensor, grads: list[torch.Tensor], rates: list[float], decay: float
) -> torch.Tensor:
    """Loshchilov and Hutter 2019, algorithm 2, in float64; betas 0.9 and 0.95."""
    w = weight.double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        m = 0.9 * m + 0.1 * grad.double()
        v = 0.95 * v + 0.05 * grad.double() ** 2
        w -= rate * decay * w
        w -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
    return w


def test_adamw_steps_against_float64_and_only_matrices_decay() -> None:
    model = nn.Linear(3, 4)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = Optimizer(
        model, 4, lr=0.1, betas=(0.9, 0.95), weight_decay=0.5, schedule="linear", max_grad_norm=1e9
    )
    history: dict[str, list[torch.Tensor]] = {name: [] for name in before}
    rates = []
    for step in range(4):
        for name, weight in model.named_parameters():
            weight.grad = torch.randn_like(weight)
            history[name].append(weight.grad.clone())
        rates.append(optimizer.step(step)["lr"])
    assert rates == pytest.approx([0.1 * (0.1 + 0.9 * (1 - step / 4)) for step in range(4)])
    for name, decay in (("weight", 0.5), ("bias", 0.0)):
        expected = adamw_by_hand(before[name], history[name], rates, decay)
        torch.testing.assert_close(
            model.get_parameter(name).detach().double(), expected, atol=1e-6, rtol=0
        )


def test_gradients_are_clipped_together_and_cleared() -> None:
    model = nn.Linear(1, 1)
    optimizer = Optimizer(model, 1, lr=1e-3, max_grad_norm=1.0)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    seen = []
    optimizer.optimizers[0].register_step_pre_hook(
        lambda *_: seen.extend([model.weight.grad.item(), model.bias.grad.item()])
    )
    assert optimizer.step(0)["grad_norm"].item() == pytest.approx(5.0)
    assert seen == pytest.approx([0.6, 0.8], rel=1e-5)
    assert model.weight.grad is None and model.bias.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(bad: float) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    optimizer = Optimizer(model, 5, lr=1.0)
    model.weight.grad, model.bias.grad = torch.full((2, 2), bad), torch.zeros(2)
    with pytest.raises(FloatingPointError, match="gradient norm is (nan|inf) at step 3"):
        optimizer.step(3)
    assert model.weight.equal(before)


def names_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> set[str]:
    by_id = {id(weight): name for name, weight in model.named_parameters()}
    return {by_id[id(p)] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_the_hidden_matrices_and_nothing_else(kind: str, tied: bool) -> None:
    model = random_lm(kind)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    adamw, muon = Optimizer(model, 3, lr=1e-3, name="muon").optimizers
    hidden = names_of(muon, model)
    assert {name.split(".")[-2] for name in hidden} == MATRICES
    assert len(hidden) == 2 * len(MATRICES), "of both layers"
    rest = names_of(adamw, model)
    assert hidden | rest == {name for name, _ in model.named_parameters()}
    assert not hidden & rest and "model.embed_tokens.weight" in rest
    assert ("lm_head.weight" in rest) is not tied


def test_muon_moves_hidden_matrices_equally_in_all_directions() -> None:
    """Its step is near orthogonal, with the size of an AdamW step: 0.2 sqrt(longer side) a
    direction (Liu et al. 2025, Muon is scalable for LLM training, equation 4).
    """
    model = random_lm("qwen3")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = Optimizer(
        model, 2, lr=1e-3, name="muon", muon_lr=0.01, schedule="constant", max_grad_norm=1e9
    )
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step(0)
    for name in names_of(optimizer.optimizers[1], model):
        moved = model.get_parameter(name).detach() - before[name]
        sizes = torch.linalg.svdvals(moved) / (0.01 * 0.2 * max(moved.shape) ** 0.5)
        assert 0.4 < sizes.min() and sizes.max() < 1.3, name
    embedding = model.model.embed_tokens.weight.detach() - before["model.embed_tokens.weight"]
    assert embedding.abs().max().item() == pytest.approx(1e-3, rel=1e-2), "AdamW's first step"


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_continues_exactly(name: str, tmp_path: Path) -> None:
    def start() -> tuple[nn.Module, Optimizer]:
        model = random_lm("llama")
        return model, Optimizer(model, 6, lr=0.01, name=name, warmup=0.3, weight_decay=0.1)

    def advance(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for weight in model.parameters():
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step(step)

    whole, optimizer = start()
    advance(whole, optimizer, range(6))
    model, optimizer = start()
    advance(model, optimizer, range(3))
    path = save_checkpoint(
        tmp_path, 3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    )
    _, saved = load_checkpoint(path)
    again, optimizer = start()
    again.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    advance(again, optimizer, range(3, 6))
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_frozen_weights_stay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = Optimizer(model, 1, lr=1.0, weight_decay=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step(0)
    assert model[0].weight.equal(before)


DTYPES = [torch.bfloat16, torch.float16, torch.float32]


class Views(nn.Module):
    """Two weights that are slices of one tensor that somebody else owns."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.owner = [torch.randn(8, 3).to(dtype)]
        self.first = nn.Parameter(self.owner[0][:5])
        self.second = nn.Parameter(self.owner[0][5:])

    def loss(self, micro: int) -> torch.Tensor:
        x = torch.randn(3, generator=torch.Generator().manual_seed(micro)).to(self.first.dtype)
        return (self.first @ x).sin().sum() + (self.second @ x).square().sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offload", [False, True])
def test_masters_follow_torch_adamw_in_float64(dtype: torch.dtype, offload: bool) -> None:
    """torch's AdamW in float64 on the same gradients; the weights are its rounded masters."""
    model = Views(dtype)
    storage = model.owner[0].data_ptr()
    optimizer = Optimizer(
        model, 6, lr=0.02, weight_decay=0.1, max_grad_norm=1.0, schedule="linear", offload=offload
    )
    exact = [nn.Parameter(w.detach().double()) for w in (model.first, model.second)]
    reference = torch.optim.AdamW(exact, lr=0.02, weight_decay=0.1)
    for step in range(6):
        sums = [torch.zeros_like(w) for w in exact]
        for micro in range(3):
            grads = torch.autograd.grad(model.loss(3 * step + micro), [model.first, model.second])
            for total, grad in zip(sums, grads, strict=True):
                total += grad.double()
            model.loss(3 * step + micro).backward()
        for weight, total in zip(exact, sums, strict=True):
            weight.grad = total
        norm = nn.utils.clip_grad_norm_(exact, 1.0)
        reference.param_groups[0]["lr"] = 0.02 * (0.1 + 0.9 * (1 - step / 6))
        reference.step()
        said = optimizer.step(step)
        assert said["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-5)
    for master, weight, expected in zip(
        optimizer.masters, (model.first, model.second), exact, strict=True
    ):
        assert master.dtype == torch.float32
        torch.testing.assert_close(master.detach().double(), expected.detach(), atol=2e-6, rtol=0)
        assert torch.equal(weight.detach(), master.detach().to(dtype))
        assert weight.grad is None
    joined = torch.cat([model.first, model.second]).detach()
    assert torch.equal(joined, model.owner[0]), "written where the owner sees it"
    assert model.first.data_ptr() == storage


def test_steps_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    """A step of 1e-4 on a weight of 1 is lost in bfloat16 (spacing 2^-8); 100 of them are not."""
    model = nn.Linear(2, 2, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    optimizer = Optimizer(model, 100, lr=1e-4, schedule="constant")
    for step in range(100):
        model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(step)
    assert optimizer.masters[0].mean().item() == pytest.approx(0.99, abs=1e-4)
    assert model.weight.float().mean().item() == pytest.approx(0.99, abs=2**-8)


def test_a_low_precision_run_continues_exactly_from_a_checkpoint(tmp_path: Path) -> None:
    def advance(model: Views, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            model.loss(step).backward()
            optimizer.step(step)

    whole = Views(torch.bfloat16)
    advance(whole, Optimizer(whole, 6, lr=0.01), range(6))
    half = Views(torch.bfloat16)
    optimizer = Optimizer(half, 6, lr=0.01)
    advance(half, optimizer, range(3))
    path = save_checkpoint(tmp_path, 3, {"optimizer": optimizer.state_dict()})
    again = Views(torch.bfloat16)
    optimizer = Optimizer(again, 6, lr=0.01)
    optimizer.load_state_dict(load_checkpoint(path)[1]["optimizer"])
    assert torch.equal(again.owner[0], half.owner[0]), "the masters bring the weights along"
    advance(again, optimizer, range(3, 6))
    assert torch.equal(again.owner[0], whole.owner[0])
    other = Views(torch.float32)
    with pytest.raises(ValueError, match="2 float32 masters and this run keeps 0: resume with"):
        Optimizer(other, 6, lr=0.01).load_state_dict(load_checkpoint(path)[1]["optimizer"])


def test_zero_grad_forgets_low_precision_sums() -> None:
    model = Views(torch.bfloat16)
    optimizer = Optimizer(model, 2, lr=0.01)
    model.loss(0).backward()
    assert all(g is not None and g.dtype == torch.float32 for g in optimizer.gradients())
    optimizer.zero_grad()
    assert optimizer.gradients() == [None, None]


@pytest.mark.gpu
def test_on_a_gpu_the_clip_and_the_skip_stay_on_the_device() -> None:
    """Same steps as on the CPU; a NaN changes nothing and is reported at the next step."""
    models = [Views(torch.float32), Views(torch.float32).cuda()]
    optimizers = [Optimizer(model, 4, lr=0.1, max_grad_norm=0.5) for model in models]
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            for weight in (model.first, model.second):
                weight.grad = torch.full_like(weight, step + 1.0)
            optimizer.step(step)
    torch.testing.assert_close(models[1].first.cpu(), models[0].first, atol=1e-6, rtol=0)
    before = models[1].first.detach().clone()
    models[1].first.grad = torch.full_like(models[1].first, math.nan)
    models[1].second.grad = torch.zeros_like(models[1].second)
    optimizers[1].step(3)
    assert torch.equal(models[1].first, before)
    with pytest.raises(FloatingPointError, match="gradient norm is nan at step 3"):
        optimizers[1].state_dict()
