"""Preference training of a causal LM: rows of pairs, their logprobs, and the gradient of a step.

B pairs   N completion tokens of a pass   D hidden width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from visa_core.config.preference import PreferenceTraining
from visa_core.models.rewriter import Rewriter
from visa_core.training.forward import autocast, completion_logits
from visa_core.training.packed_attention import enable_shared_prefix, packed_forward
from visa_core.training.preference_losses import PairLogprobs
from visa_core.training.preference_pairs import RewritePair
from visa_core.training.stage import report_set_aside
from visa_kernels import linear_logprobs, pack_to_budget, shared_prefix_layout, token_logprobs

Reference = tuple[torch.Tensor, torch.Tensor]
"""Sums of logprobs of the chosen and of the rejected completions, [B] each."""
Losses = Callable[[PairLogprobs, Reference | None], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""Loss [B] and metrics [B] of pairs; the reference is None where the loss needs none."""


@dataclass(frozen=True)
class PairRow:
    """Token ids of a pair; `index` counts the pairs of the run."""

    index: int
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """What the pair costs in a pass, its prompt read once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def encode(rewriter: Rewriter, pairs: Sequence[RewritePair]) -> list[PairRow]:
    """Token ids of all pairs; those beyond the limits are set aside and counted in a warning."""
    rows: list[PairRow] = []
    problems = []
    for pair in pairs:
        try:
            target = rewriter.space.vector(pair.target)
            prompt = rewriter.prompt(pair.query, pair.response, target).ids
            both = [rewriter.completion_ids(text) for text in (pair.chosen, pair.rejected)]
            rows.append(PairRow(len(rows), prompt, *both))
        except ValueError as error:
            problems.append(f"{pair.query[:40]!r}: {error}")
    report_set_aside(problems, len(pairs))
    return rows


class PairScorer:
    """Logprobs of pairs under a causal LM. A pair's prompt is read once for both completions.

    Where the model's logits are its head's product with the last states, all pairs of a pass are
    one packed row and no logits are kept; other models (windows, capped scores) go through padded
    rows.
    """

    def __init__(self, model: nn.Module, pad_id: int, precision: str) -> None:
        self.model = model
        self.pad_id = pad_id
        self.precision = precision
        self.head = plain_head(model)
        if self.head is not None:
            enable_shared_prefix(model)  # type: ignore[arg-type]

    def __call__(self, rows: Sequence[PairRow]) -> PairLogprobs:
        """Sums of logprobs of these pairs, with their gradient."""
        completions = [ids for row in rows for ids in (row.chosen, row.rejected)]
        lengths = torch.tensor([len(ids) for ids in completions], device=self.model.device)
        with autocast(self.model.device, self.precision):
            if self.head is None:
                logits, ids = completion_logits(
                    self.model, [row.prompt for row in rows], completions, self.pad_id
                )
                logprobs_N = token_logprobs(logits, ids)
            else:
                logprobs_N = self._packed(rows, completions)
        owner = torch.repeat_interleave(
            torch.arange(len(completions), device=lengths.device), lengths
        )
        sums = torch.zeros(len(completions), device=lengths.device)
        sums = sums.index_add(0, owner, logprobs_N.float())
        return PairLogprobs(
            chosen=sums[0::2],
            rejected=sums[1::2],
            chosen_tokens=lengths[0::2].float(),
            rejected_tokens=lengths[1::2].float(),
        )

    def _packed(self, rows: Sequence[PairRow], completions: list[list[int]]) -> torch.Tensor:
        assert self.head is not None
        device = self.model.device
        layout = shared_prefix_layout(
            [len(row.prompt) for row in rows], [len(ids) for ids in completions], [2] * len(rows)
        ).to(device)
        flat = [t for row in rows for part in (row.prompt, row.chosen, row.rejected) for t in part]
        ids = torch.tensor(flat, device=device)
        output = packed_forward(self.model.base_model, ids, layout)
        hidden_ND = output.last_hidden_state[0][layout.predictors]
        wanted_N = ids[layout.completion_mask]
        return linear_logprobs(hidden_ND, self.head.weight, wanted_N, self.head.bias)


@torch.no_grad()
def plain_head(model: nn.Module) -> nn.Linear | None:
    """The model's head where packed rows and `linear_logprobs` can take its place: no window, and
    logits that are the head's product with the last states and nothing else, which two tokens tell.
    """
    head = model.get_output_embeddings()
    windows = getattr(model.config, "sliding_window", None) is not None
    inside = getattr(model, "base_model", model)
    wrapped = hasattr(model, "peft_config")
    if windows or wrapped or inside is model or not isinstance(head, nn.Linear):
        return None
    ids = torch.tensor([[0, 1]], device=model.device)
    states = inside(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    return head if torch.allclose(head(states), logits, rtol=1e-3, atol=1e-3) else None


def passes(rows: Sequence[PairRow], budget: int) -> Iterator[list[PairRow]]:
    """The pairs in as few passes of at most `budget` tokens as first-fit finds."""
    for chosen in pack_to_budget([row.tokens for row in rows], budget):
        yield [rows[i] for i in chosen]


@torch.no_grad()
def reference_logprobs(scorer: PairScorer, rows: Sequence[PairRow], budget: int) -> Reference:
    """Sums of logprobs of all pairs under a frozen model, [B] each, in the order of the rows."""
    chosen, rejected = torch.empty(len(rows)), torch.empty(len(rows))
    position = {row.index: i for i, row in enumerate(rows)}
    for some in passes(rows, budget):
        found = scorer(some)
        where = [position[row.index] for row in some]
        chosen[where], rejected[where] = found.chosen.cpu(), found.rejected.cpu()
    return chosen, rejected


def pick(
    reference: Reference | None, rows: Sequence[PairRow], device: torch.device
) -> Reference | None:
    """The reference of these rows on the device."""
    if reference is None:
        return None
    where = [row.index for row in rows]
    return reference[0][where].to(device), reference[1][where].to(device)


def backward(
    scorer: PairScorer,
    batch: Sequence[PairRow],
    reference: Reference | None,
    losses: Losses,
    config: PreferenceTraining,
) -> dict[str, torch.Tensor]:
    """Add a step's gradient; its metrics. The loss is the mean over the step's pairs, plus
    `sft_weight` times the mean over all chosen tokens, however the pairs are split into passes.
    """
    tokens = sum(len(row.chosen) for row in batch)
    totals: dict[str, torch.Tensor] = {}
    for rows in passes(batch, config.token_budget):
        found = scorer(rows)
        loss_B, metrics = losses(found, pick(reference, rows, found.chosen.device))
        loss = loss_B.sum() / len(batch)
        entropy = -found.chosen.sum() / tokens
        if config.sft_weight:
            loss = loss + config.sft_weight * entropy
        loss.backward()
        parts = {name: value.sum() / len(batch) for name, value in metrics.items()}
        parts = {"loss": loss.detach(), **parts, "chosen_nll": entropy.detach()}
        totals = {name: totals.get(name, 0) + value for name, value in parts.items()}
    return totals
