"""The policy loss as a torch operator: opcheck, compile, export, threads, instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.ops.backends import each_backend
from tests.ops.policy_loss import Batch, on
from visa_kernels import LOSS_TYPES, grpo_loss
from visa_kernels import backend as backends
from visa_kernels.grpo_loss import torch_op

CPU_MISSING = backends.why_no_extension()
needs_cpu = pytest.mark.skipif(CPU_MISSING is not None, reason=str(CPU_MISSING))
kernels = each_backend("grpo_loss").args[1]
on_every_kernel = pytest.mark.parametrize(
    "backend,device", [case for case in kernels if case.values[0] != "reference"]
)


def operator_arguments(backend: str, device: str, **change: Any) -> tuple[Any, ...]:
    """All 25 arguments of the operator, in order."""
    a = on(device, Batch((3, 0, 5)).arguments("dapo"), torch.float32)
    names = ("logprobs", "old_logprobs", "advantages", "cu_seqlens", "normalizer", "ref_logprobs")
    tensors = [a[name] for name in (*names, "sampler_logprobs", "entropy", "mask")]
    tensors[0].requires_grad_()
    settings = {
        "loss_type": "grpo", "divisor": 1.0, "clip_low": 0.2, "clip_high": 0.3, "clip_dual": 2.0,
        "kl_beta": 0.1, "sampler_correction": "sequence_mask", "sequence_weight": "product",
        "correction_low": 0.1, "correction_cap": 3.0, "advantage_scale": "given",
        "advantage_eps": 1e-4, "group_size": 0, "backend": backend,
    }  # fmt: skip
    return (*tensors, None, None, *(settings | change).values())


@on_every_kernel
def test_opcheck(backend: str, device: str) -> None:
    arguments = operator_arguments(backend, device)
    torch.library.opcheck(torch_op._grpo_loss, arguments)
    few = list(operator_arguments(backend, device, sampler_correction="none"))
    few[4:9] = [None] * 5
    torch.library.opcheck(torch_op._grpo_loss, tuple(few))


@pytest.mark.slow
@on_every_kernel
def test_compiles_into_one_graph(backend: str, device: str) -> None:
    torch.compiler.reset()
    a = on(device, Batch((3, 0, 5)).arguments("gspo"), torch.float32)
    logprobs = a.pop("logprobs")

    def loss_of(x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = grpo_loss(x * 2, backend=backend, **a)
        return loss + 1, metrics

    def results(function: Any) -> tuple[Any, ...]:
        x = logprobs.clone().requires_grad_()
        loss, metrics = function(x)
        loss.backward()
        return loss.detach(), x.grad, metrics

    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(compiled), results(loss_of), rtol=0, atol=0)


@pytest.mark.slow
@needs_cpu
def test_exports() -> None:
    a = on("cpu", Batch((3, 0, 5)).arguments("dapo"), torch.float32)
    logprobs = a.pop("logprobs")

    class Loss(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return grpo_loss(x, backend="cpu", **a)[0]

    program = torch.export.export(Loss(), (logprobs,))
    assert "visa_kernels.grpo_loss" in program.graph_module.code
    torch.testing.assert_close(program.module()(logprobs), Loss()(logprobs), rtol=0, atol=0)


@needs_cpu
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_results_do_not_depend_on_the_threads(loss_type: str) -> None:
    b = Batch(tuple(range(190)), spread=0.1)
    a = on("cpu", b.arguments(loss_type, sampler_correction="sequence_truncate"), torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(grpo_loss(backend="cpu", **a))
        finally:
            torch.set_num_threads(1)
    torch.testing.assert_close(found[1:], [found[0]] * 2, rtol=0, atol=0)


PROGRAM = """
import torch
from tests.ops.policy_loss import Batch
from tests.ops.test_grpo_loss_backends import assert_close, on, run
from visa_kernels import LOSS_TYPES, _C
assert _C.isa() == {isa!r}
for loss_type in LOSS_TYPES:
    for correction in ("token_mask", "sequence_truncate"):
        a = Batch((40, 1, 0, 9, 33)).rounded(torch.float32).arguments(
            loss_type, sampler_correction=correction
        )
        assert_close(run(on("cpu", a, torch.float32), "cpu"), a)
"""


@pytest.mark.slow
@needs_cpu
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_narrower_instruction_sets(isa: str) -> None:
    from visa_kernels import _C

    if isa not in _C.supported_isas():
        pytest.skip(f"this build or machine lacks {isa}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(isa=isa)],
        env={**os.environ, "VISA_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_cpu
def test_float64_goes_to_the_reference_unless_a_kernel_is_named() -> None:
    b = Batch((3, 2))
    a = {name: b[name] for name in ("logprobs", "old_logprobs", "advantages", "cu_seqlens")}
    loss, metrics = grpo_loss(normalizer=1.0, **a)
    assert loss.dtype == metrics["ess"].dtype == torch.float64
    with pytest.raises(backends.BackendError, match="takes float32, bfloat16, float16, not float"):
        grpo_loss(normalizer=1.0, backend="cpu", **a)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": None}, "either advantages or rewards, one of them"),
        ({"rewards": torch.zeros(2)}, "either advantages or rewards, one of them"),
        ({"cu_seqlens": None}, "needs cu_seqlens"),
        ({"group_size": 2}, "group_size belong to rewards, but advantages were given"),
        ({"clip_dual": 1.0}, "clip_dual must be greater than 1, got 1.0"),
        ({"clip_dual": 2.0, "loss_type": "cispo"}, "clip_dual is not for cispo"),
        ({"correction_low": 3.0}, "must be 0 <= low <= cap, got 3.0 and 2.0"),
        ({"sequence_weight": "sum"}, "sequence_weight must be one of product, geometric"),
        ({"entropy": torch.zeros(2)}, "entropy must have the shape of logprobs"),
        ({"cu_seqlens": torch.tensor([0, 2, 4])}, "must rise from 0 to the number of tokens, 3"),
        ({"cu_seqlens": torch.tensor([0, 4, 3])}, "must rise from 0 to the number of tokens, 3"),
        ({"cu_seqlens": torch.tensor([1, 2, 3])}, r"must rise from 0 .*got \[1, 2, 3\]"),
    ],
)
def test_bad_arguments(backend: str, change: dict[str, Any], message: str) -> None:
    arguments = {
        "logprobs": torch.zeros(3),
        "old_logprobs": torch.zeros(3),
        "advantages": torch.zeros(2),
        "cu_seqlens": torch.tensor([0, 1, 3]),
    }
    with pytest.raises(ValueError, match=message):
        grpo_loss(**(arguments | change), backend=backend)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": None}, "either group_ids or group_size, one of them"),
        ({"group_size": 3}, "group_size must divide the number of rows, 2, got 3"),
        ({"advantage_scale": "std"}, "advantage_scale must be one of group, batch, none"),
        ({"rewards": torch.tensor([0.0, torch.inf])}, r"must be finite: 1 of 2 .* rows 1 \(inf\)"),
        ({"reward_mask": torch.ones(2)}, r"mask of rewards must be bool \(2,\), got torch.float"),
        ({"rewards": torch.zeros(3)}, r"rewards must be \[2\], one per row"),
    ],
)
def test_bad_rewards(backend: str, change: dict[str, Any], message: str) -> None:
    arguments = {
        "logprobs": torch.zeros(3),
        "old_logprobs": torch.zeros(3),
        "cu_seqlens": torch.tensor([0, 1, 3]),
        "rewards": torch.zeros(2),
        "group_size": 2,
    }
    with pytest.raises(ValueError, match=message):
        grpo_loss(**(arguments | change), backend=backend)


@pytest.mark.parametrize("correction", ["token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "cispo"])
def test_gradcheck_of_the_reference(loss_type: str, correction: str) -> None:
    b = Batch((5, 1, 0, 4))
    a = b.arguments(loss_type, sampler_correction=correction)
    logprobs = a.pop("logprobs").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: grpo_loss(x, backend="reference", **a)[0], (logprobs,)
    )


@pytest.mark.gpu
def test_one_launch_replayed_by_a_graph_without_a_sync() -> None:
    b = Batch((70, 1, 0, 900))
    a = on("cuda", b.arguments("gspo"), torch.float32)
    expected = grpo_loss(backend="triton", **a)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, metrics = grpo_loss(backend="triton", **a)
    for _ in range(3):
        loss.zero_()
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close((loss, metrics), expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_more_than_2_to_the_31_tokens(backend: str) -> None:
    reason = next(
        found.why_not() for found in backends.registered()["grpo_loss"] if found.name == backend
    )
    if reason is not None:
        pytest.skip(reason)
    rows, length = 64, 2**25 + 1
    logprobs = torch.full((rows * length,), -1.0, dtype=torch.bfloat16, device="cuda")
    ends = torch.arange(rows + 1, device="cuda") * length
    advantages = torch.zeros(rows, device="cuda")
    advantages[-1] = 2.0
    logprobs.requires_grad_()
    loss, metrics = grpo_loss(
        logprobs, logprobs.detach(), advantages, ends, normalizer=1.0, backend=backend
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert loss.item() == pytest.approx(-2.0 * length, rel=1e-3)
    assert gradient[-1].item() == -2.0 and gradient[0].item() == 0.0
    assert metrics["ess"].item() == pytest.approx(1.0, rel=1e-3)
