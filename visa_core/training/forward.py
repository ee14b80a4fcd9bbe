"""Completion logprobs of a causal LM under teacher forcing: padded in, packed out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from visa_core.rollout.hf import left_pad


def completion_logits(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the completion tokens, packed: (logits [N, V], tokens [N]).

    Prompts end and completions begin at one column, so that only the completion's columns reach the head.
    """
    device = model.device
    prompt_ids, prompt_mask = left_pad(prompts, pad_id, device)
    rows = [torch.tensor(row) for row in completions]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
    all_mask = torch.cat([prompt_mask, mask], 1)
    output = model(
        input_ids=torch.cat([prompt_ids, ids], 1),
        attention_mask=all_mask,
        position_ids=(all_mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=ids.shape[1] + 1,
    )
    kept = mask.bool()
    return output.logits[:, :-1][kept], ids[kept]
