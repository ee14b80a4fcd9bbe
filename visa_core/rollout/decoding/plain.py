"""Decoding through transformers' own cache: any causal LM, each row with a copy of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache

from visa_core.rollout.padding import left_pad


class PlainDecoder:
    """Decoder of left-padded rows with a DynamicCache, which grows by concatenation."""

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self.model = model
        self.pad_id = pad_id

    def prefill(self, prompts: Sequence[Sequence[int]], completions: int) -> torch.Tensor:
        """See Decoder."""
        ids_PT, mask_PT = left_pad(prompts, self.pad_id, self.model.device)
        self.cache = DynamicCache(config=self.model.config)
        output = self.model(
            input_ids=ids_PT,
            attention_mask=mask_PT,
            position_ids=(mask_PT.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.batch_repeat_interleave(completions)
        self.mask_ST = mask_PT.repeat_interleave(completions, 0)
        return output.logits[:, -1].repeat_interleave(completions, 0)

    def worth_dropping(self, ended_S: torch.Tensor) -> bool:
        """See Decoder."""
        return bool(ended_S.any())

    def keep(self, alive_S: torch.Tensor) -> torch.Tensor:
        """See Decoder."""
        kept = alive_S.nonzero()[:, 0].to(self.mask_ST.device)
        self.cache.batch_select_indices(kept)
        self.mask_ST = self.mask_ST[kept]
        return kept

    def step(self, token_S: torch.Tensor) -> torch.Tensor:
        """See Decoder."""
        self.mask_ST = torch.cat([self.mask_ST, self.mask_ST.new_ones(len(token_S), 1)], 1)
        output = self.model(
            input_ids=token_S[:, None],
            attention_mask=self.mask_ST,
            position_ids=self.mask_ST.sum(1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]
