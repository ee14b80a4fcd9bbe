"""The default engine: samples with the Hugging Face module that is being trained, so there is
nothing to synchronise.

Each prompt is read once and its keys and values are shared out to its completions; finished rows
leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache

from visa_core.rollout.padding import left_pad
from visa_core.rollout.sampling import SamplingConfig, draw, row_seed, uniforms
from visa_core.types import RolloutBatch


class HFEngine:
    """Engine over any Hugging Face causal LM. `stop_ids` end a completion and are kept as its last
    token.
    """

    def __init__(self, model: nn.Module, stop_ids: Sequence[int], pad_id: int) -> None:
        if not stop_ids:
            raise ValueError(
                "the engine needs at least one stop token; set eos_token in the model's tokenizer"
            )
        self.model = model
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=model.device)
        self.pad_id = pad_id

    def weights_updated(self) -> None:
        """Nothing to do: the engine reads the trained module itself."""

    def release(self) -> None:
        """Nothing to do: the cache lives as long as a call of generate."""

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        completions: int,
        sampling: SamplingConfig,
        seed: int,
        *,
        first_group: int = 0,
        stop_ids: Sequence[int] | None = None,
    ) -> RolloutBatch:
        """See Engine.generate."""
        training = self.model.training
        self.model.eval()
        stops = self.stop_ids
        if stop_ids is not None:
            stops = torch.tensor(sorted(set(stop_ids)), dtype=torch.long, device=stops.device)
        groups = range(first_group, first_group + len(prompts))
        seeds = [row_seed(seed, group, c) for group in groups for c in range(completions)]
        try:
            return self._generate(prompts, completions, sampling, torch.tensor(seeds), stops)
        finally:
            self.model.train(training)

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        completions: int,
        sampling: SamplingConfig,
        seeds_B: torch.Tensor,
        stops: torch.Tensor,
    ) -> RolloutBatch:
        device = self.model.device
        uniform_BT = uniforms(seeds_B.to(device), sampling.max_new_tokens)
        cache, mask_BT, logits_BV = self._prefill(prompts, completions)
        rows = len(prompts) * completions
        tokens: list[list[int]] = [[] for _ in range(rows)]
        logprobs: list[list[float]] = [[] for _ in range(rows)]
        finished = torch.zeros(rows, dtype=torch.bool)
        alive = torch.arange(rows, device=device)
        for length in range(1, sampling.max_new_tokens + 1):
            token_B, logprob_B = draw(logits_BV, sampling, uniform_BT[alive, length - 1])
            for row, token, logprob in zip(
                alive.tolist(), token_B.tolist(), logprob_B.tolist(), strict=True
            ):
                tokens[row].append(token)
                logprobs[row].append(logprob)
            stopped_B = torch.isin(token_B, stops)
            finished[alive[stopped_B].cpu()] = True
            keep = (~stopped_B).nonzero()[:, 0]
            if not len(keep) or length == sampling.max_new_tokens:
                break
            if len(keep) < len(alive):
                cache.batch_select_indices(keep)
                alive, mask_BT, token_B = alive[keep], mask_BT[keep], token_B[keep]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], 1)
            output = self.model(
                input_ids=token_B[:, None],
                attention_mask=mask_BT,
                position_ids=mask_BT.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits_BV = output.logits[:, -1]
        return _pack(tokens, logprobs, finished, completions)

    def _prefill(
        self, prompts: Sequence[Sequence[int]], completions: int
    ) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Read each prompt once: cache and mask [B, T] of P * completions rows, next-token logits
        [B, V].
        """
        ids_PT, mask_PT = left_pad(prompts, self.pad_id, self.model.device)
        cache = DynamicCache(config=self.model.config)
        output = self.model(
            input_ids=ids_PT,
            attention_mask=mask_PT,
            position_ids=(mask_PT.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(completions)
        return (
            cache,
            mask_PT.repeat_interleave(completions, 0),
            output.logits[:, -1].repeat_interleave(completions, 0),
        )


def _pack(
    tokens: list[list[int]], logprobs: list[list[float]], finished: torch.Tensor, completions: int
) -> RolloutBatch:
    lengths = torch.tensor([0] + [len(row) for row in tokens])
    return RolloutBatch(
        tokens=torch.tensor([token for row in tokens for token in row]),
        cu_seqlens=lengths.cumsum(0),
        group_ids=torch.arange(len(tokens)) // completions,
        logprobs=torch.tensor([value for row in logprobs for value in row]),
        finished=finished,
    )
