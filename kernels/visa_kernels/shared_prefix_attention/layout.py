"""The packed order of groups that share a prompt: [prompt, c_1 .. c_G], group after group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SharedPrefixLayout:
    """Where everything is in a packed batch of N tokens, S segments and P groups."""

    cu_seqlens: Tensor
    """int32 [S + 1]: segment s is tokens cu_seqlens[s] to cu_seqlens[s + 1] - 1."""
    cu_groups: Tensor
    """int32 [P + 1]: group g is segments cu_groups[g] to cu_groups[g + 1] - 1, its prompt first."""
    position_ids: Tensor
    """int64 [N]: from 0 in a prompt; completions go on where their prompt ends."""
    completion_mask: Tensor
    """bool [N]: True for the tokens of completions."""
    predictors: Tensor
    """int64 [tokens of completions]: the token whose logits predict each of them, which is the one
    before, and for a first token the last of its prompt; -1 where the prompt is empty."""

    def to(self, device: torch.device | str) -> SharedPrefixLayout:
        """The same layout on another device."""
        return SharedPrefixLayout(**{k: v.to(device) for k, v in vars(self).items()})


def shared_prefix_layout(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    group_sizes: Sequence[int],
) -> SharedPrefixLayout:
    """Layout of P groups, on the CPU, without a loop over tokens.

    prompt_lengths [P], group_sizes [P] completions per prompt, completion_lengths of all
    completions, group after group: [sum of group_sizes]. Any length and any group size may be 0.

    Raises ValueError for numbers that do not fit together or are negative.
    """
    prompts, completions, sizes = (
        torch.as_tensor(list(x), dtype=torch.int64)
        for x in (prompt_lengths, completion_lengths, group_sizes)
    )
    if len(prompts) != len(sizes) or int(sizes.sum()) != len(completions):
        raise ValueError(
            f"{len(prompts)} prompts, {len(sizes)} group sizes that sum to {int(sizes.sum())} and "
            f"{len(completions)} completions do not fit together"
        )
    if min(min(x.tolist(), default=0) for x in (prompts, completions, sizes)) < 0:
        raise ValueError("lengths and group sizes cannot be negative")
    cu_groups = _bounds(sizes + 1)
    first_segment = cu_groups[:-1]
    is_prompt = torch.zeros(int(cu_groups[-1]), dtype=torch.bool)
    is_prompt[first_segment] = True
    lengths = torch.empty(len(is_prompt), dtype=torch.int64)
    lengths[is_prompt], lengths[~is_prompt] = prompts, completions
    cu_seqlens = _bounds(lengths)
    prompt_end = cu_seqlens[first_segment + 1]
    last_of_prompt = torch.where(prompts > 0, prompt_end - 1, -1).repeat_interleave(sizes)
    offsets = torch.zeros_like(lengths)
    offsets[~is_prompt] = prompts.repeat_interleave(sizes)
    token = torch.arange(int(cu_seqlens[-1]))
    completion_mask = (~is_prompt).repeat_interleave(lengths)
    in_completion = token[completion_mask]
    is_first = in_completion == cu_seqlens[:-1][~is_prompt].repeat_interleave(completions)
    return SharedPrefixLayout(
        cu_seqlens=cu_seqlens.to(torch.int32),
        cu_groups=cu_groups.to(torch.int32),
        position_ids=token + (offsets - cu_seqlens[:-1]).repeat_interleave(lengths),
        completion_mask=completion_mask,
        predictors=torch.where(
            is_first, last_of_prompt.repeat_interleave(completions), in_completion - 1
        ),
    )


def _bounds(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
