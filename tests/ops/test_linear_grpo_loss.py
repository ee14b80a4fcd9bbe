"""The policy loss from hidden states: every loss type and option against dense float64 autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import memory
from tests.ops.backends import cases, each_backend
from visa_kernels import grpo_loss, linear_grpo_loss, loss_normalizer
from visa_kernels.linear_grpo_loss import passes

EVERY = cases("linear_grpo_loss")
on_each = each_backend("linear_grpo_loss")
on_kernels = pytest.mark.parametrize(
    "backend,device", [case for case in EVERY if case.values[0] != "reference"]
)
VOCABULARY, HIDDEN = 61, 12


class Batch:
    """Packed rows of 0 to 9 tokens, one with advantage 0; ratios on both sides of the clip."""

    def __init__(self, lengths: tuple[int, ...] = (5, 1, 0, 9, 3, 7), dtype=torch.float32) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64)

        self.lengths = torch.tensor(lengths, dtype=torch.int64)
        tokens = int(self.lengths.sum())
        self.cu = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
        self.leaves = {
            "hidden": normal(tokens, HIDDEN).to(dtype).double(),
            "weight": (0.4 * normal(VOCABULARY, HIDDEN)).to(dtype).double(),
            "bias": normal(VOCABULARY).to(dtype).double(),
        }
        self.ids = torch.randint(0, VOCABULARY, (tokens,))
        logits = self.leaves["hidden"] @ self.leaves["weight"].t() + self.leaves["bias"]
        logp = logits.log_softmax(-1).gather(-1, self.ids[:, None]).squeeze(-1)
        self.old = (logp + 0.3 * normal(tokens)).float()
        self.ref = (logp + 0.3 * normal(tokens)).float()
        self.sampler = self.old + 0.4 * normal(tokens).float()
        self.adv = normal(len(lengths)).float()
        self.adv[-2] = 0.0
        self.mask = torch.rand(tokens) > 0.25
        self.exact = logp.float()

    def options(self, loss_type: str, **more: Any) -> dict[str, Any]:
        counted = torch.stack([m.sum() for m in self.mask.split(self.lengths.tolist())])
        return {
            "loss_type": loss_type,
            "clip_low": 0.2,
            "clip_high": 0.25,
            "normalizer": loss_normalizer(loss_type, counted, max_length=12),
            "mask": self.mask,
        } | more

    def kl(self) -> dict[str, Any]:
        return {"ref_logprobs": self.ref, "kl_beta": 0.1}


def on(device: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()
    }


def dense(
    b: Batch, options: dict[str, Any], dtype=torch.float64, device: str = "cpu"
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """All logits in the inputs' type, then the reference of `grpo_loss`; loss and gradients."""
    leaves = {k: x.to(device, dtype).requires_grad_() for k, x in b.leaves.items()}
    logits = torch.nn.functional.linear(leaves["hidden"], leaves["weight"], leaves["bias"])
    cap, heat = options.get("softcap"), options.get("temperature", 1.0)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    every = (logits.double() if dtype == torch.float64 else logits.float()) / heat
    every = every.log_softmax(-1)
    logprobs = every.gather(-1, b.ids.to(device)[:, None]).squeeze(-1)
    entropy = -(every.exp() * every).sum(-1)
    skip = ("softcap", "temperature", "metrics_for_skipped", "skip_rows", "chunk_tokens")
    rest = on(device, {name: x for name, x in options.items() if name not in skip})
    loss, metrics = grpo_loss(
        logprobs, b.old.to(device), b.adv.to(device), b.cu.to(device), entropy=entropy.detach(),
        backend="reference", **rest,
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return [r.detach().double().cpu() for r in (loss, *gradients)], metrics


def fused(
    b: Batch, options: dict[str, Any], backend: str, device: str, dtype=torch.float32
) -> tuple[list[Tensor], dict[str, Tensor]]:
    leaves = {k: x.to(device, dtype).requires_grad_() for k, x in b.leaves.items()}
    loss, metrics = linear_grpo_loss(
        leaves["hidden"], leaves["weight"], b.ids.to(device), b.old.to(device), b.adv.to(device),
        b.cu.to(device), bias=leaves["bias"], backend=backend, **on(device, options),
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return [r.detach().double().cpu() for r in (loss, *gradients)], metrics


def compare(
    b: Batch, options: dict[str, Any], backend: str, device: str, dtype=torch.float32,
    factor: float = 2.0, floor: float = 2e-6,
) -> None:
    """Error at most `factor` times that of torch code in the same type, plus a floor."""
    exact, exact_metrics = dense(b, options)
    theirs, their_metrics = dense(b, options, dtype, device)
    ours, metrics = fused(b, options, backend, device, dtype)
    for got, same, want in zip(ours, theirs, exact, strict=True):
        budget = factor * (same - want).abs().max() + floor * (1 + want.abs().max())
        assert (got - want).abs().max() <= budget
    if not options.get("metrics_for_skipped", True):
        return
    assert set(metrics) == set(exact_metrics)
    for name, want in exact_metrics.items():
        error = abs(metrics[name].item() - want.item())
        same = abs(their_metrics[name].item() - want.item())
        assert error <= factor * same + 5 * floor * (1 + abs(want.item())), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kl": {"kl": True},
    "unmasked": {"mask": None},
    "skipped": {"metrics_for_skipped": False},
    "every row": {"skip_rows": False, "kl": True},
    "softcap": {"softcap": 3.0, "chunk_tokens": 4},
    "hot": {"temperature": 1.7, "chunk_tokens": 1},
    "token": {"sampler": "token_truncate", "kl": True},
    "masking": {"sampler": "token_mask", "metrics_for_skipped": False},
    "sequence": {"sampler": "sequence_mask", "chunk_tokens": 1000},
}


def with_options(b: Batch, loss_type: str, which: str) -> dict[str, Any]:
    more = dict(OPTIONS[which])
    extra = b.kl() if more.pop("kl", False) else {}
    if "sampler" in more:
        extra |= {"sampler_logprobs": b.sampler, "sampler_correction": more.pop("sampler")}
        extra |= {"correction_cap": 1.3, "correction_low": 0.6}
    return b.options(loss_type, **extra, **more)


@on_each
@pytest.mark.parametrize("which", OPTIONS)
@pytest.mark.parametrize("loss_type", ["grpo", "gspo", "cispo"])
def test_values_gradients_and_metrics(
    backend: str, device: str, loss_type: str, which: str
) -> None:
    b = Batch()
    compare(b, with_options(b, loss_type, which), backend, device)


@on_each
@pytest.mark.parametrize("loss_type", ["bnpo", "dapo", "dr_grpo"])
def test_other_loss_types(backend: str, device: str, loss_type: str) -> None:
    b = Batch()
    compare(b, b.options(loss_type, clip_dual=1.5, **b.kl()), backend, device)


@on_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_error_budget(backend: str, device: str, dtype: torch.dtype, loss_type: str) -> None:
    """Clip and mask decide by thresholds, which rounding may cross: ratios stay well inside."""
    b = Batch((40, 30, 50), dtype)
    b.old = b.exact
    options = b.options(loss_type, clip_low=0.9, clip_high=9.0, normalizer=120.0)
    eps = torch.finfo(dtype).eps
    compare(b, options, backend, device, dtype, 1.5, eps / 2)


@on_each
def test_rewards_in_groups(backend: str, device: str) -> None:
    """Groups of two; one group of equal rewards has nothing to learn."""
    b = Batch()
    rewards = torch.tensor([1.0, 0.5, 0.3, 0.3, 0.0, 2.0])
    pairs = rewards.double().reshape(3, 2)
    spread = pairs.std(1, keepdim=True) + 1e-4
    b.adv = ((pairs - pairs.mean(1, keepdim=True)) / spread).flatten()
    exact, _ = dense(b, b.options("dapo"))
    leaves = {k: x.to(device).float().requires_grad_() for k, x in b.leaves.items()}
    loss, _ = linear_grpo_loss(
        leaves["hidden"], leaves["weight"], b.ids.to(device), b.old.to(device),
        cu_seqlens=b.cu.to(device), rewards=rewards.to(device), group_size=2,
        bias=leaves["bias"], backend=backend, **on(device, b.options("dapo")),
    )
    ours = [loss, *torch.autograd.grad(loss, list(leaves.values()))]
    for got, want in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double().cpu(), want, rtol=1e-4, atol=1e-6)


@on_each
@pytest.mark.parametrize("loss_type", ["dapo", "gspo", "grpo"])
def test_one_batch_equals_its_micro_batches(backend: str, device: str, loss_type: str) -> None:
    """... with dweight added straight to one float32 gradient."""
    b = Batch()
    options = b.options(loss_type, **b.kl())
    whole, _ = fused(b, options, backend, device)
    weight = b.leaves["weight"].to(device).float()
    into = torch.ones_like(weight)
    parts, total = [], 0.0
    for row in range(len(b.lengths)):
        part = slice(int(b.cu[row]), int(b.cu[row + 1]))
        hidden = b.leaves["hidden"][part].to(device).float().requires_grad_()
        cut = {"mask": b.mask[part], "ref_logprobs": b.ref[part]}
        loss, _ = linear_grpo_loss(
            hidden, weight, b.ids[part].to(device), b.old[part].to(device),
            b.adv[row : row + 1].to(device), torch.tensor([0, len(hidden)], device=device),
            bias=b.leaves["bias"].to(device).float(), accumulate_into=into, backend=backend,
            **on(device, options | cut),
        )
        total += loss.item()
        (gradient,) = torch.autograd.grad(loss, hidden)
        parts.append(gradient.double().cpu())
    assert total == pytest.approx(whole[0].item(), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(torch.cat(parts), whole[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(into.double().cpu() - 1, whole[2], rtol=1e-3, atol=2e-6)


@on_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accumulate_into(backend: str, device: str, dtype: torch.dtype) -> None:
    """Equal to the returned gradient, but unrounded; the weight gets none of its own."""
    b = Batch(dtype=dtype)
    options = b.options("dapo")
    _, _, dweight, dbias = fused(b, options, backend, device, dtype)[0]
    leaves = {k: x.to(device, dtype).requires_grad_() for k, x in b.leaves.items()}
    into = torch.full((VOCABULARY, HIDDEN), 2.0, device=device)
    loss, _ = linear_grpo_loss(
        leaves["hidden"], leaves["weight"], b.ids.to(device), b.old.to(device), b.adv.to(device),
        b.cu.to(device), bias=leaves["bias"], accumulate_into=into, backend=backend,
        **on(device, options),
    )
    loss.backward()
    assert leaves["weight"].grad is None
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(leaves["bias"].grad.double().cpu(), dbias)
    torch.testing.assert_close(into.double().cpu() - 2, dweight, rtol=4 * eps, atol=2 * eps)


@on_kernels
def test_a_factor_on_the_loss(backend: str, device: str) -> None:
    b = Batch()
    leaves = {k: x.to(device).float().requires_grad_() for k, x in b.leaves.items()}
    arguments = (b.ids, b.old, b.adv, b.cu)
    loss, _ = linear_grpo_loss(
        leaves["hidden"], leaves["weight"], *(x.to(device) for x in arguments), backend=backend
    )
    once = torch.autograd.grad(loss, [leaves["hidden"], leaves["weight"]], retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, [leaves["hidden"], leaves["weight"]])
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(three, 3 * one)
    into = torch.zeros_like(leaves["weight"])
    loss, _ = linear_grpo_loss(
        leaves["hidden"], leaves["weight"], *(x.to(device) for x in arguments),
        accumulate_into=into.detach(), backend=backend,
    )
    if device == "cpu":  # on a GPU the failed assertion would end the process's CUDA context
        with pytest.raises(RuntimeError, match="accumulate_into"):
            (3 * loss).backward()


@on_each
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_nothing_to_learn(backend: str, device: str, loss_type: str) -> None:
    """No tokens, all masked, no advantage: gradients are zeros, however the memory came."""
    b = Batch()
    for case in ("empty", "masked", "flat"):
        options = b.options(loss_type)
        if case == "masked":
            options["mask"] = torch.zeros_like(b.mask)
            b.leaves["hidden"][0] = torch.nan
            b.ids[1] = -100
        if case == "flat":
            b = Batch()
            b.adv = torch.zeros_like(b.adv)
        if case == "empty":
            e = Batch((0, 0))
            options = e.options(loss_type)
        (loss, *gradients), metrics = fused(e if case == "empty" else b, options, backend, device)
        assert loss == 0
        assert all(gradient.eq(0).all() for gradient in gradients)
        assert all(torch.isfinite(value) for value in metrics.values())


@on_each
def test_masked_tokens_have_no_effect(backend: str, device: str) -> None:
    for skip_rows in (True, False):
        b = Batch()
        options = b.options("dapo", skip_rows=skip_rows, **b.kl())
        clean, _ = fused(b, options, backend, device)
        for x in (b.leaves["hidden"], b.old, b.ref):
            x[~b.mask] = torch.nan
        b.ids[~b.mask] = 10**6
        dirty, _ = fused(b, options, backend, device)
        for got, want in zip(dirty, clean, strict=True):
            assert torch.equal(got, want)


@on_kernels
def test_only_what_is_asked_for(backend: str, device: str) -> None:
    b = Batch()
    leaves = {k: x.to(device).float() for k, x in b.leaves.items()}
    arguments = [x.to(device) for x in (b.ids, b.old, b.adv, b.cu)]
    loss, metrics = linear_grpo_loss(
        leaves["hidden"], leaves["weight"], *arguments, backend=backend
    )
    assert not loss.requires_grad
    hidden = leaves["hidden"].requires_grad_()
    again, _ = linear_grpo_loss(hidden, leaves["weight"], *arguments, backend=backend)
    torch.testing.assert_close(again, loss)
    again.backward()
    assert hidden.grad is not None and leaves["weight"].grad is None
    with torch.no_grad():
        assert not linear_grpo_loss(hidden, leaves["weight"], *arguments)[0].requires_grad


def test_clipped_rows_leave_the_gradient_products() -> None:
    """Rows 1 and 3 of four are clipped: the last row takes the place of row 1."""
    seen: list[Any] = []

    class Spy:
        def add(self, dlogits: Tensor, hidden: Tensor, head: Any, rows: Any) -> None:
            seen.append((dlogits.clone(), hidden, rows))

    dlogits, hidden = torch.arange(8.0).reshape(4, 2), torch.arange(4.0)[:, None]
    slopes = torch.tensor([1.0, 0.0, 2.0, 3.0])
    passes.add_moving(Spy(), dlogits, hidden, None, slice(10, 14), slopes)
    got, rows_of_hidden, places = seen.pop()
    np.testing.assert_array_equal(got, [[0, 1], [6, 7], [4, 5]])
    assert rows_of_hidden.flatten().tolist() == [0, 3, 2]
    assert places.tolist() == [10, 13, 12]
    passes.add_moving(Spy(), dlogits, hidden, None, slice(0, 4), torch.zeros(4))
    assert not seen


def test_refusals() -> None:
    b = Batch()
    hidden, weight = b.leaves["hidden"].float(), b.leaves["weight"].float()
    for wrong, message in [
        ({"accumulate_into": torch.zeros(3, 3)}, "accumulate_into"),
        ({"accumulate_into": torch.zeros_like(weight, dtype=torch.bfloat16)}, "float32"),
        ({"loss_type": "ppo"}, "loss_type"),
        ({"advantages": b.adv[1:]}, "advantages"),
        ({"mask": b.mask[1:]}, "mask"),
        ({"sampler_correction": "token_mask"}, "sampler_logprobs"),
        ({"kl_beta": 0.1}, "ref_logprobs"),
        ({"ids": b.ids + VOCABULARY}, "ids must be"),
        ({"cu_seqlens": b.cu + 1}, "rise from 0"),
        ({"rewards": b.adv}, "one of them"),
    ]:
        arguments = {"old_logprobs": b.old, "advantages": b.adv, "cu_seqlens": b.cu, "ids": b.ids}
        with pytest.raises(ValueError, match=message):
            linear_grpo_loss(hidden, weight, **arguments | wrong)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_no_logits_of_the_whole_batch(backend: str) -> None:
    """[T, V] would take 128 MiB, and dense torch takes several of them."""
    torch.use_deterministic_algorithms(False)
    hidden = torch.randn(2048, 8, requires_grad=True)
    weight = torch.randn(2**14, 8, requires_grad=True)
    ids, old = torch.zeros(2048, dtype=torch.int64), torch.full((2048,), -9.7)
    cu, adv = torch.tensor([0, 1024, 2048]), torch.tensor([1.0, -1.0])

    def run() -> Any:
        loss, _ = linear_grpo_loss(
            hidden, weight, ids, old, adv, cu, chunk_tokens=32, backend=backend
        )
        return torch.autograd.grad(loss, [hidden, weight])

    run()
    used = memory.of_call(run, "cpu")
    if used is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert used.peak < 48 * 2**20
