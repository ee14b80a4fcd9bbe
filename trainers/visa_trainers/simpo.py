"""Simple preference optimisation of the rewriter: mean logprobs, a margin, no reference."""

from __future__ import annotations

from pathlib import Path

from visa_core.config import SimPOConfig
from visa_core.training.preference_losses import simpo_losses
from visa_trainers import preference


def train(config: SimPOConfig) -> Path:
    """Train the rewriter and save it in `config.out`; returns that folder."""

    def losses(pairs, reference):
        return simpo_losses(
            pairs, beta=config.beta, gamma=config.gamma, label_smoothing=config.label_smoothing
        )

    return preference.train(config, losses, "simpo")
