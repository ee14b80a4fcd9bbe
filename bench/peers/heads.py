"""Fused linear log-probabilities of Apple's cut cross entropy and of verl; a GPU alone.

Neither is installed by `make bench-deps`: cut-cross-entropy is published for other versions of
Triton and verl brings its whole trainer. Where they are found they are measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.peers import installed


def why_no_cut() -> str | None:
    """None where cut cross entropy can run."""
    reason = installed.why_not(installed.CUT, "cut_cross_entropy")
    return reason or (None if torch.cuda.is_available() else "it needs a GPU")


def cut(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Its exact form, "cce_exact": without the filter that drops small gradients. No entropy."""
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, ids, reduction="none", impl="cce_exact")


def why_no_verl() -> str | None:
    """None where verl's kernel can run."""
    reason = installed.why_not(installed.VERL, "verl.utils.kernel.linear_cross_entropy")
    return reason or (None if torch.cuda.is_available() else "it needs a GPU")


def verl(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities; it makes the entropies too."""
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    logprobs, _ = linear_cross_entropy(hidden, weight, ids, 1.0, "none")
    return logprobs
