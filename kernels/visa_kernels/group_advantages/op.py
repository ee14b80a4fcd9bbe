"""Rewards to advantages: how much better each completion is than the others of its prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.group_advantages import reference

SCALES = ("group", "batch", "none")


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    scale: str = "group",
    eps: float = 1e-4,
    backend: str | None = None,
) -> Tensor:
    """Advantage of each row [B]: (reward - mean of its group) / (std + eps).

    rewards    [B] floating point
    group_ids  [B] integers in any order; groups may differ in size, a group of one has advantage 0
    scale      "group": std of the row's group (GRPO, arXiv:2402.03300, section 4.1.2);
               "batch": std of all rewards; "none": no division (Dr. GRPO, arXiv:2503.20783)

    The standard deviation is the sample's (divided by n - 1), as torch.std has it. Computed in
    float64, returned as float32 (float64 for float64 rewards). No gradient flows to the rewards.
    A group of equal rewards gives exact zeros.

    Raises ValueError for a NaN or infinite reward, naming the rows, for shapes that differ and for
    an unknown scale. The check reads one flag back from the device.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise ValueError(
            "rewards and group_ids must both be [B], "
            f"got {tuple(rewards.shape)} and {tuple(group_ids.shape)}"
        )
    _refuse_non_finite(rewards)
    run = backends.choose("group_advantages", rewards.device.type, backend)
    return run(rewards.detach(), group_ids, scale, eps)


def _refuse_non_finite(rewards_B: Tensor) -> None:
    bad_B = ~torch.isfinite(rewards_B)
    if not bool(bad_B.any()):
        return
    rows = bad_B.nonzero().flatten().tolist()
    shown = ", ".join(f"{row} ({rewards_B[row].item()})" for row in rows[:8])
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    raise ValueError(
        f"rewards must be finite: {len(rows)} of {len(rewards_B)} are not, rows {shown}{more}"
    )


backends.register(
    "group_advantages",
    backends.Backend(name="reference", function=reference.group_advantages),
)
