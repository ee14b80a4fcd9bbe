"""What goes wrong while completions are sampled."""

from __future__ import annotations


class RolloutError(OSError):
    """The engine failed in the middle of a rollout; nothing of that step has reached the weights.

    The message says what failed and how to go on: the command line prints it and exits with 2.
    """
