"""Losses of preference training, as pure functions of the logprobs of whole completions.

B pairs. Sums of logprobs, or means a token where that is said; all float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class PairLogprobs:
    """Logprobs of a batch of pairs: sums [B] over the tokens of each completion, and their
    counts [B].
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def chosen_mean(self) -> torch.Tensor:
        """Mean logprob a token of the chosen ones, [B]."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> torch.Tensor:
        """Mean logprob a token of the rejected ones, [B]."""
        return self.rejected / self.rejected_tokens


def dpo_losses(
    policy: PairLogprobs,
    reference: tuple[torch.Tensor, torch.Tensor],
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of every pair [B] and its metrics [B]; reference: (chosen, rejected) sums of logprobs.

    With r = log policy - log reference of a completion and d = r_chosen - r_rejected:
    sigmoid  -log sigmoid(beta d), smoothed as in "cDPO" (Rafailov et al., arXiv:2305.18290)
    hinge    max(0, 1 - beta d) (Zhao et al., arXiv:2305.10425)
    ipo      (d' - 1 / (2 beta))^2, d' of r a token (Azar et al., arXiv:2310.12036)
    """
    chosen, rejected = policy.chosen - reference[0], policy.rejected - reference[1]
    scaled = beta * (chosen - rejected)
    if loss_type == "sigmoid":
        losses = _smoothed(scaled, label_smoothing)
    elif loss_type == "hinge":
        losses = F.relu(1 - scaled)
    elif loss_type == "ipo":
        each = chosen / policy.chosen_tokens - rejected / policy.rejected_tokens
        losses = (each - 1 / (2 * beta)) ** 2
    else:
        raise ValueError(f'loss_type is "sigmoid", "hinge" or "ipo", not {loss_type!r}')
    return losses, _metrics(beta * chosen, beta * rejected)


def simpo_losses(
    policy: PairLogprobs, *, beta: float, gamma: float, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-log sigmoid(beta (mean logprob chosen - mean logprob rejected) - gamma) of every pair [B],
    and its metrics [B] (Meng et al., arXiv:2405.14734).
    """
    chosen, rejected = beta * policy.chosen_mean, beta * policy.rejected_mean
    return _smoothed(chosen - rejected - gamma, label_smoothing), _metrics(chosen, rejected)


def _smoothed(logits: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    wrong = -label_smoothing * F.logsigmoid(-logits) if label_smoothing else 0.0
    return -(1 - label_smoothing) * F.logsigmoid(logits) + wrong


def _metrics(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, torch.Tensor]:
    """Implicit rewards: that of the chosen, that of the rejected, which is larger, by how much."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "accuracy": (chosen > rejected).float(),
        "margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
    }
