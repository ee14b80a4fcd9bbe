"""The mock update: K adapters of one frozen base trained at once, each on its own texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from visa_core.config.search import UpdateConfig
from visa_core.search.adapters import CandidateAdapters
from visa_core.training.forward import autocast, completion_logits
from visa_core.training.optim import Schedule
from visa_core.training.packed_attention import NAME, packed_forward
from visa_core.training.run import batch_rows
from visa_kernels import linear_logprobs, shared_prefix_layout, token_logprobs


@dataclass(frozen=True)
class Row:
    """Token ids of one training row."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def mock_update(
    model: PreTrainedModel,
    adapters: CandidateAdapters,
    rows: Sequence[Sequence[Row]],
    config: UpdateConfig,
    *,
    pad_id: int,
    seed: int = 0,
) -> list[float]:
    """Train adapter k on rows[k]; returns each candidate's mean loss over the last step, [K].

    All candidates see the same row numbers in a step, so that they differ in their texts alone.
    Gradients are clipped a candidate, so that none slows another; one that is not finite stays with
    its candidate. The result does not depend on how many candidates are trained together, up to
    rounding.
    """
    assert len({len(own) for own in rows}) == 1 and len(rows) == adapters.candidates
    weights = list(adapters.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
    )
    schedule = Schedule(config.steps, "linear", config.warmup)
    losses = torch.zeros(adapters.candidates)
    for step in range(config.steps):
        picks = batch_rows(len(rows[0]), config.batch_size, seed, step).tolist()
        batch = [[own[i] for i in picks] for own in rows]
        losses = backward(model, adapters, batch, config, pad_id)
        clip_each(weights, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule.factor(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses.tolist()


def backward(
    model: PreTrainedModel,
    adapters: CandidateAdapters,
    batch: Sequence[Sequence[Row]],
    config: UpdateConfig,
    pad_id: int,
) -> torch.Tensor:
    """Add the gradients of one step; mean cross entropy of each candidate, [K] on the CPU.

    The mean is over the candidate's completion tokens of the whole step, however many passes it
    takes.
    """
    device = model.device
    tokens_K = torch.tensor([float(sum(len(r.completion) for r in own)) for own in batch])
    losses_K = torch.zeros(len(batch))
    for part in passes(batch, config.token_budget):
        owner_N = torch.tensor([k for k, own in enumerate(part) for r in own for _ in r.completion])
        with autocast(device, config.precision):
            logprobs_N = part_logprobs(model, adapters, part, pad_id)
        shares_N = -logprobs_N / tokens_K.to(device)[owner_N.to(device)]
        shares_N.sum().backward()
        losses_K.index_add_(0, owner_N, shares_N.detach().float().cpu())
    return losses_K


def passes(batch: Sequence[Sequence[Row]], budget: int) -> Iterator[list[list[Row]]]:
    """The step's rows in passes of about `budget` tokens over all candidates; every pass has the
    same row numbers of all of them.
    """
    start, used = 0, 0
    for i in range(len(batch[0])):
        size = sum(len(own[i]) for own in batch)
        if i > start and used + size > budget:
            yield [list(own[start:i]) for own in batch]
            start, used = i, 0
        used += size
    yield [list(own[start:]) for own in batch]


def part_logprobs(
    model: PreTrainedModel,
    adapters: CandidateAdapters,
    part: Sequence[Sequence[Row]],
    pad_id: int,
) -> torch.Tensor:
    """Log-probabilities of all completion tokens, [N], candidate after candidate.

    Packed without padding where the model's attention can be (`enable_shared_prefix`), else padded.
    """
    flat = [row for own in part for row in own]
    if model.config._attn_implementation != NAME:
        with adapters.attached(model, [len(own) for own in part]):
            logits_NV, ids_N = completion_logits(
                model, [r.prompt for r in flat], [r.completion for r in flat], pad_id
            )
        return token_logprobs(logits_NV, ids_N)
    layout = shared_prefix_layout(
        [len(r.prompt) for r in flat], [len(r.completion) for r in flat], [1] * len(flat)
    )
    ids_N = torch.tensor([token for r in flat for token in (*r.prompt, *r.completion)])
    wanted, device = ids_N[layout.completion_mask], model.device
    layout = layout.to(device)
    with adapters.attached(model, [sum(map(len, own)) for own in part]):
        output = packed_forward(model.base_model, ids_N.to(device), layout)
    hidden_ND = output.last_hidden_state[0][layout.predictors]
    head: Any = model.get_output_embeddings()
    return linear_logprobs(hidden_ND, head.weight, wanted.to(device), head.bias)


@torch.no_grad()
def clip_each(weights: Sequence[nn.Parameter], limit: float) -> None:
    """Scale the gradients of each candidate, the first axis, to a global norm of at most
    `limit`.
    """
    grads = [w.grad for w in weights if w.grad is not None]
    norm_K = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
    factor_K = (limit / (norm_K + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad *= factor_K[:, None, None]
