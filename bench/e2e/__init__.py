"""A whole GRPO step, phase by phase: ours with each engine beside TRL's trainer."""
