"""Peers in the form that bench/ops takes: inputs prepared into theirs, results as ours are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.ops import linear_logprobs, token_logprobs
from bench.ops.grpo_loss import GROUP
from bench.peers import heads, installed, liger, trl, trl_packing
from bench.registry import Inputs, Provider, extend

GEMM_BUDGET = 50.0
"""Error of a peer's head against same-dtype torch: TRL rounds tiles of logits, Liger sums dweight
in the weight's dtype. How far each is off is in the report."""

READS_BACK = "it reads its metrics back to the host"


def attach() -> None:
    """Add every peer to the op it implements."""
    extend(
        "token_logprobs",
        {"trl": trl_token_logprobs()},
        why_not={"trl": trl.why_not},
        versions={"trl": installed.TRL},
        prepare={"trl": as_batch},
        notes={"trl": "selective_log_softmax_and_entropy: Triton on a GPU, a loop on a CPU"},
    )
    extend(
        "grpo_loss",
        {"trl": trl_loss},
        why_not={"trl": trl.why_not},
        versions={"trl": installed.TRL},
        prepare={"trl": loss_rows},
        notes={"trl": "GRPOTrainer._compute_loss on given advantages, with its logged metrics"},
        no_graph={"trl": READS_BACK},
    )
    extend(
        "linear_grpo_loss",
        {"trl": trl_linear_loss, "liger": liger_linear_loss},
        why_not={"trl": trl.why_not, "liger": liger.why_not},
        versions={"trl": installed.TRL, "liger": installed.LIGER},
        prepare={"trl": head_rows, "liger": head_rows},
        budgets={"trl": GEMM_BUDGET, "liger": GEMM_BUDGET},
        notes={
            "trl": "chunked head and GRPOTrainer._compute_loss, with its logged metrics",
            "liger": "LigerFusedLinearGRPOLoss, compiled, one row a chunk",
        },
        no_graph={"trl": READS_BACK},
    )
    extend(
        "linear_logprobs",
        {
            "trl": linear_logprobs.forward_and_backward(lambda *leaves: trl.head(*leaves)[0]),
            "cut": linear_logprobs.forward_and_backward(heads.cut),
            "verl": linear_logprobs.forward_and_backward(heads.verl),
        },
        why_not={"trl": trl.why_not, "cut": heads.why_no_cut, "verl": heads.why_no_verl},
        versions={"trl": installed.TRL, "cut": installed.CUT, "verl": installed.VERL},
        budgets={"trl": GEMM_BUDGET, "cut": GEMM_BUDGET, "verl": GEMM_BUDGET},
        notes={"trl": "with entropies", "verl": "with entropies"},
    )
    extend(
        "packing",
        {"trl": trl_packing.pack},
        why_not={"trl": trl_packing.why_not},
        versions={"trl": installed.TRL},
        prepare={"trl": trl_packing.as_table},
        accepts={"trl": trl_packing.problem},
        notes={"trl": "_pack_bfd: best fit decreasing, and the tokens are moved in an Arrow table"},
    )


def as_batch(inputs: Inputs) -> Inputs:
    """Logits as TRL's trainer has them, [8, T / 8, V]: on a CPU it loops over the first axis."""
    tokens = len(inputs["ids"])
    rows = 8 if tokens % 8 == 0 else 1
    return {
        **inputs,
        "logits": inputs["logits"].view(rows, tokens // rows, -1),
        "ids": inputs["ids"].view(rows, -1),
        "upstream": inputs["upstream"].view(rows, -1),
    }


def trl_token_logprobs() -> Provider:
    run = token_logprobs.forward_and_backward(trl.token_logprobs_and_entropy)

    def flat(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, entropy, gradient = run(inputs)
        return logprobs.view(-1), entropy.view(-1), gradient.view(-1, gradient.shape[-1])

    return flat


def loss_rows(inputs: Inputs) -> Inputs:
    """Rows of one length as [B, T], with advantages ready-made: TRL makes them before the loss."""
    rows = len(inputs["rewards"])
    groups = inputs["rewards"].view(-1, GROUP)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    logprobs = inputs["logprobs"].detach().view(rows, -1)
    return {
        "logprobs": logprobs.clone().requires_grad_(),
        "old_logprobs": inputs["old_logprobs"].view(rows, -1),
        "advantages": advantages.view(-1),
        "mask": torch.ones_like(logprobs, dtype=torch.long),
    }


def trl_loss(inputs: Inputs) -> tuple[Tensor, Tensor]:
    loss, _ = trl.loss(**inputs, loss_type="dapo")
    (gradient,) = torch.autograd.grad(loss, inputs["logprobs"])
    return loss.detach(), gradient.view(-1)


def head_rows(inputs: Inputs) -> Inputs:
    """Old logprobs and ids as [B, T] beside the packed hidden; all rows have one length."""
    rows = len(inputs["advantages"])
    ids_BT = inputs["ids"].view(rows, -1)
    return {
        **inputs,
        "ids_BT": ids_BT,
        "old_BT": inputs["old_logprobs"].view(rows, -1),
        "mask": torch.ones_like(ids_BT),
    }


def trl_linear_loss(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    leaves = (inputs["hidden"], inputs["weight"])
    loss, _ = trl.linear_loss(*leaves, inputs["ids"], **common(inputs), loss_type="dapo")
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def liger_linear_loss(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    leaves = (inputs["hidden"], inputs["weight"])
    hidden_BTD = leaves[0].view(*inputs["ids_BT"].shape, -1)
    loss = liger.linear_loss(
        hidden_BTD,
        leaves[1],
        inputs["ids_BT"],
        **common(inputs),
        loss_type="dapo",
        compiled=True,
    )
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def common(inputs: Inputs) -> dict[str, Any]:
    return {
        "old_logprobs": inputs["old_BT"],
        "advantages": inputs["advantages"],
        "mask": inputs["mask"],
    }
