"""Engines that sample completions: prompts as token ids in, packed rollouts out."""
