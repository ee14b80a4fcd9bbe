"""Settings of training a low-rank adapter instead of the weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """LoRA (arXiv:2106.09685) through peft."""

    rank: int = 0
    """Rank of the adapter; 0 trains all weights."""
    alpha: float = 16.0
    """The adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get one, such as q_proj v_proj; without any, all but the
    head.
    """
    new_tokens_from: int = 0
    """Embeddings of the tokens from this number on are trained whole, such as words that a widened
    rewriter has yet to learn; 0: none.
    """

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"--lora.rank must be 0 (no adapter) or more, got {self.rank}")
        if self.new_tokens_from < 0:
            raise ValueError(f"--lora.new-tokens-from must not be negative: {self.new_tokens_from}")
        if not self.alpha > 0:
            raise ValueError(f"--lora.alpha must be above 0, got {self.alpha}")
