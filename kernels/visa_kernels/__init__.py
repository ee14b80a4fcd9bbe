"""Operations of VISA: each a folder with a reference in plain torch and one public function.

Needs torch and nothing of visa_core. See `backend` for how an implementation is chosen.
"""

from __future__ import annotations

from visa_kernels.dedupe_pairs.op import UniquePairs, dedupe_pairs
from visa_kernels.group_advantages.op import group_advantages
from visa_kernels.group_prefixes.op import PrefixGroups, group_prefixes
from visa_kernels.grpo_loss.op import LOSS_TYPES, grpo_loss, loss_normalizer
from visa_kernels.linear_grpo_loss.op import linear_grpo_loss
from visa_kernels.linear_logprobs.op import linear_logprobs
from visa_kernels.packed_attention.op import packed_attention
from visa_kernels.packed_rows import PackedRows
from visa_kernels.packing.op import bin_of_sequences, pack_to_budget
from visa_kernels.reward_scores.op import NON_FINITE, Pieces, RewardScores, reward_scores
from visa_kernels.shared_prefix_attention.layout import SharedPrefixLayout, shared_prefix_layout
from visa_kernels.shared_prefix_attention.op import shared_prefix_attention
from visa_kernels.shared_prefix_decode.op import shared_prefix_decode
from visa_kernels.token_logprobs.op import token_logprobs

__all__ = [
    "LOSS_TYPES",
    "NON_FINITE",
    "PackedRows",
    "Pieces",
    "PrefixGroups",
    "RewardScores",
    "SharedPrefixLayout",
    "UniquePairs",
    "bin_of_sequences",
    "dedupe_pairs",
    "group_advantages",
    "group_prefixes",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_logprobs",
    "loss_normalizer",
    "pack_to_budget",
    "packed_attention",
    "reward_scores",
    "shared_prefix_attention",
    "shared_prefix_decode",
    "shared_prefix_layout",
    "token_logprobs",
]
