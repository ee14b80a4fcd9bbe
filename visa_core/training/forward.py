"""Completion logits of a causal LM under teacher forcing: rows in, packed tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from visa_core.rollout.padding import left_pad


def completion_logits(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the completion tokens, packed: (logits [N, V], tokens [N]).

    B completions of P prompts, B a multiple of P, the completions of one prompt adjacent. With
    several completions a prompt is
    read once: its keys and values are computed by one row and shared by the rows of its group, and
    gradients flow back through
    them. Only columns of completions reach the head.
    """
    if len(completions) % len(prompts):
        raise ValueError(
            f"{len(completions)} completions are no multiple of {len(prompts)} prompts"
        )
    group = len(completions) // len(prompts)
    ids_BT, mask_BT = _right_pad(completions, pad_id, model.device)
    prompt_ids, prompt_mask = left_pad(prompts, pad_id, model.device)
    if group == 1:
        logits = _one_pass(model, prompt_ids, prompt_mask, ids_BT, mask_BT)
    else:
        logits = _shared_prefix(model, prompt_ids, prompt_mask, ids_BT, mask_BT, group)
    kept = mask_BT.bool()
    return logits[kept], ids_BT[kept]


def _one_pass(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
) -> torch.Tensor:
    """Prompts end and completions begin at one column, so the head's columns are the same in every
    row.
    """
    mask = torch.cat([prompt_mask, mask_BT], 1)
    output = model(
        input_ids=torch.cat([prompt_ids, ids_BT], 1),
        attention_mask=mask,
        position_ids=_positions(mask),
        use_cache=False,
        logits_to_keep=ids_BT.shape[1] + 1,
    )
    return output.logits[:, :-1]


def _shared_prefix(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    group: int,
) -> torch.Tensor:
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=_positions(prompt_mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    first_BV = output.logits[:, -1:].repeat_interleave(group, 0)
    if ids_BT.shape[1] == 1:
        return first_BV
    cache.batch_repeat_interleave(group)
    mask = torch.cat([prompt_mask.repeat_interleave(group, 0), mask_BT], 1)[:, :-1]
    output = model(
        input_ids=ids_BT[:, :-1],
        attention_mask=mask,
        position_ids=_positions(mask)[:, prompt_ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first_BV, output.logits], 1)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _right_pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return ids.to(device), mask.to(device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 products for precision "bf16", else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
