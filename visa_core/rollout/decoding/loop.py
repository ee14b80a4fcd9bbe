"""The loop that samples: draw a token for every row, drop the rows that have ended, go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visa_core.rollout.decoding.decoder import Decoder
from visa_core.rollout.sampling import SamplingConfig, draw, uniforms

NOTHING = -1
"""Token id where a row has none."""
GPU_CHECK = 16
"""Tokens between two looks at which rows have ended on a GPU, which waits for it each time."""


def sample(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    completions: int,
    sampling: SamplingConfig,
    seeds_B: torch.Tensor,
    stops: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their logprobs, both [B, T]. What stands behind a row's first stop token is of no
    meaning; NOTHING where the row was dropped before.
    """
    logits_SV = decoder.prefill(prompts, completions)
    device, rows, limit = logits_SV.device, len(seeds_B), sampling.max_new_tokens
    stops = stops.to(device)
    uniform_BT = uniforms(seeds_B.to(device), limit)
    tokens_BT = torch.full((rows, limit), NOTHING, device=device)
    logprobs_BT = torch.zeros(rows, limit, device=device)
    row_S = torch.arange(rows, device=device)
    ended_S = torch.zeros(rows, dtype=torch.bool)
    every, looked = (GPU_CHECK if device.type == "cuda" else 1), 0
    for at in range(limit):
        token_S, logprob_S = draw(logits_SV, sampling, uniform_BT[row_S, at])
        tokens_BT[row_S, at], logprobs_BT[row_S, at] = token_S, logprob_S
        if at + 1 == limit:
            break
        if (at + 1) % every == 0:
            recent = tokens_BT[:, looked : at + 1][row_S]
            ended_S, looked = ended_S | torch.isin(recent, stops).any(1).cpu(), at + 1
            if ended_S.all():
                break
            if decoder.worth_dropping(ended_S):
                kept = decoder.keep(~ended_S)
                row_S, token_S = row_S[kept], token_S[kept]
                ended_S = torch.zeros(len(kept), dtype=torch.bool)
        logits_SV = decoder.step(token_S)
    return tokens_BT, logprobs_BT
