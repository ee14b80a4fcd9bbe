"""Sampling settings and the truncation of one step's distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


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


GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, odd: the step between positions, as in splitmix64."""
BLOCK = 64
"""Tokens whose probabilities are summed before the place of a draw is looked for among them."""


def row_seed(seed: int, group: int, completion: int) -> int:
    """Seed of one completion in [0, 2^63): seed, its group in the step, its number in the group."""
    mixed = seed * GOLDEN + group * 0xD1B54A32D192ED03 + completion * 0x8CB92BA72F3D8DD7
    mixed = (mixed ^ (mixed >> 32)) * 0xDA942042E4DD58B5
    return (mixed ^ (mixed >> 29)) % 2**63


def uniforms(seeds_B: torch.Tensor, positions: int) -> torch.Tensor:
    """Numbers in [0, 1) by row and position, [B, positions] float64, each a hash of both.

    seeds_B int64. splitmix64 (Steele, Lea and Flood, 2014): no state, the same on every device,
    whichever rows are asked for together.
    """
    steps_T = torch.arange(1, positions + 1, device=seeds_B.device)
    x_BT = seeds_B[:, None] + steps_T * _signed(GOLDEN)
    x_BT = (x_BT ^ _shifted(x_BT, 30)) * _signed(0xBF58476D1CE4E5B9)
    x_BT = (x_BT ^ _shifted(x_BT, 27)) * _signed(0x94D049BB133111EB)
    x_BT = x_BT ^ _shifted(x_BT, 31)
    return _shifted(x_BT, 11).double() * 2.0**-53


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """x >> by of 64 bits without a sign."""
    return (x >> by) & (2 ** (64 - by) - 1)


def draw(
    logits_BV: torch.Tensor, config: SamplingConfig, uniform_B: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its logprob under the distribution it was drawn from: ([B] int64, [B]
    float32). uniform_B [B] float64 in [0, 1) decides; greedy needs none.
    """
    if config.temperature == 0:
        logprobs_BV = logits_BV.float().log_softmax(-1)
        best_B = logprobs_BV.max(-1)
        return best_B.indices, best_B.values
    assert uniform_B is not None
    scaled_BV = logits_BV.float()
    if config.temperature != 1:
        scaled_BV = scaled_BV / config.temperature
    probs_BV = truncate(scaled_BV, config).softmax(-1)
    token_B = inverse_cdf(probs_BV, uniform_B)
    return token_B, probs_BV.gather(-1, token_B[:, None])[:, 0].log()


def inverse_cdf(probs_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative probability exceeds a row's number, [B] int64; never one of
    probability 0.

    Sums of blocks first, then within one block, both cumulated in float64: one pass over the
    probabilities, and no error that grows along the vocabulary.
    """
    rows, vocabulary = probs_BV.shape
    if vocabulary % BLOCK:
        probs_BV = F.pad(probs_BV, (0, BLOCK - vocabulary % BLOCK))
    blocks_BCK = probs_BV.view(rows, -1, BLOCK)
    cdf_BC = blocks_BCK.sum(-1).double().cumsum(-1)
    block_B1, rest_B1 = _place(cdf_BC, uniform_B[:, None] * cdf_BC[:, -1:])
    chosen_BK = blocks_BCK.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    inside_B1, _ = _place(chosen_BK.double().cumsum(-1), rest_B1)
    return (block_B1 * BLOCK + inside_B1)[:, 0]


def _place(cdf_BN: torch.Tensor, at_B1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the step of a cumulative sum that holds a value, and how far into the step it lies;
    values past the end belong to the last step that rises.
    """
    last_B1 = (cdf_BN < cdf_BN[:, -1:]).sum(-1, keepdim=True)
    index_B1 = torch.minimum((cdf_BN <= at_B1).sum(-1, keepdim=True), last_B1)
    before_B1 = cdf_BN.gather(1, (index_B1 - 1).clamp(min=0)) * (index_B1 > 0)
    return index_B1, (at_B1 - before_B1).clamp(min=0)


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
