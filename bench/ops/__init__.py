"""Importing this package registers every op."""

from __future__ import annotations

from bench.ops import group_advantages, grpo_loss, packing, token_logprobs

__all__ = ["group_advantages", "grpo_loss", "packing", "token_logprobs"]
