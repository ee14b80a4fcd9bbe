"""Typed settings. Defaults are the paper's hyperparameters where it names them; the embedded recipe
overrides them in one place.
"""

from visa_core.config.judging import EvaluationConfig, RewardConfig
from visa_core.config.preference import DPOConfig, PreferenceTraining, SimPOConfig
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
    "DPOConfig",
    "DetectorConfig",
    "EvaluationConfig",
    "GRPOConfig",
    "NLIConfig",
    "PreferenceTraining",
    "RewardConfig",
    "RewriterTraining",
    "SFTConfig",
    "SimPOConfig",
    "TranslatorConfig",
    "VectorConfig",
    "VectorTraining",
    "with_recipe",
]
