"""Typed settings. Defaults are the paper's hyperparameters where it names them; the embedded recipe
overrides them in one place.
"""

from visa_core.config.judging import EvaluationConfig, RewardConfig
from visa_core.config.rewriter import GRPOConfig, RewriterTraining, SFTConfig
from visa_core.config.scorers import (
    FROM_SCRATCH,
    PRETRAINED,
    DetectorConfig,
    NLIConfig,
    TranslatorConfig,
    VectorConfig,
    VectorTraining,
    with_recipe,
)

__all__ = [
    "FROM_SCRATCH",
    "PRETRAINED",
    "DetectorConfig",
    "EvaluationConfig",
    "GRPOConfig",
    "NLIConfig",
    "RewardConfig",
    "RewriterTraining",
    "SFTConfig",
    "TranslatorConfig",
    "VectorConfig",
    "VectorTraining",
    "with_recipe",
]
