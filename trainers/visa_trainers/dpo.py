"""Direct preference optimisation of the rewriter, against a frozen reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visa_core.config import DPOConfig
from visa_core.training.preference_losses import dpo_losses
from visa_trainers import preference


def train(config: DPOConfig) -> Path:
    """Train the rewriter and save it in `config.out`; returns that folder."""
    losses = partial(
        dpo_losses,
        beta=config.beta,
        loss_type=config.loss_type,
        label_smoothing=config.label_smoothing,
    )
    return preference.train(config, losses, "dpo", config.reference or config.model)
