"""Sampling settings and the truncation of one step's distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens with at least this probability; 1 keeps all."""
    top_k: int = 0
    """Most probable tokens kept; 0 keeps all."""
    min_p: float = 0.0
    """Tokens below this share of the most probable one's probability are dropped; 0 keeps all."""
    max_new_tokens: int = 1536
    """Completion length limit; rows cut there count as unfinished."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0 (0 is greedy), not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k < 0 or not 0 <= self.min_p < 1:
            raise ValueError(
                f"top_k must be >= 0 and min_p in [0, 1), not {self.top_k} and {self.min_p}"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")


def row_seed(seed: int, group: int, completion: int) -> int:
    """Seed of one completion in [0, 2^63): seed, its group in the step, its number in the group."""
    mixed = seed * 0x9E3779B97F4A7C15 + group * 0xD1B54A32D192ED03 + completion * 0x8CB92BA72F3D8DD7
    mixed = (mixed ^ (mixed >> 32)) * 0xDA942042E4DD58B5
    return (mixed ^ (mixed >> 29)) % 2**63


def draw(
    logits_BV: torch.Tensor, config: SamplingConfig, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its logprob under the distribution it was drawn from: ([B] int64, [B]
    float32).
    """
    if config.temperature == 0:
        logprobs_BV = logits_BV.float().log_softmax(-1)
        token_B = logprobs_BV.argmax(-1)
    else:
        logprobs_BV = truncate(logits_BV.float() / config.temperature, config).log_softmax(-1)
        token_B = torch.multinomial(logprobs_BV.exp(), 1, generator=generator)[:, 0]
    return token_B, logprobs_BV.gather(-1, token_B[:, None])[:, 0]


def truncate(logits_BV: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Logits with the tokens that top-k, min-p and top-p leave out set to -inf, in that order."""
    if 0 < config.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(config.top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if config.min_p > 0:
        floor_B1 = logits_BV.amax(-1, keepdim=True) + torch.tensor(config.min_p).log()
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, float("-inf"))
    if config.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(-1, descending=True)
        probs_BV = sorted_BV.softmax(-1)
        outside_BV = probs_BV.cumsum(-1) - probs_BV >= config.top_p
        outside_BV = torch.zeros_like(outside_BV).scatter(-1, order_BV, outside_BV)
        logits_BV = logits_BV.masked_fill(outside_BV, float("-inf"))
    return logits_BV
