"""Rewards to advantages: how much better each completion is than the others of its prompt."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.group_advantages import checks, reference, torch_op

SCALES = checks.SCALES
CHECKS = ("raise", "nan")


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor | None = None,
    scale: str = "group",
    eps: float = 1e-4,
    backend: str | None = None,
    *,
    group_size: int | None = None,
    mask: Tensor | None = None,
    check: str = "raise",
) -> Tensor:
    """Advantage of each row [B]: (reward - mean of its group) / (std + eps).

    rewards     [B] floating point
    group_ids   [B] integers in any order; groups may differ in size, a group of one has advantage 0
    group_size  in place of group_ids: groups are this many consecutive rows each
    scale       "group": std of the row's group (GRPO, arXiv:2402.03300, section 4.1.2);
                "batch": std of all rewards; "none": no division (Dr. GRPO, arXiv:2503.20783)
    mask        [B] bool, False for rows that do not count: their advantage is 0, and their reward,
                NaN too, has no effect
    check       "raise": a counted reward that is NaN or infinite is an error; on a GPU that reads
                one flag back. "nan": no check and no sync; it makes its group's advantages NaN
                (all rows' with scale="batch")

    The standard deviation is the sample's (divided by n - 1), as torch.std has it. Computed in
    float64, returned as float32 (float64 for float64 rewards). No gradient flows to the rewards.
    A group of equal rewards gives exact zeros.

    On a GPU, one launch for group_size, and for group_ids up to `triton_kernel.MAX_ROWS_BY_ID`
    rows; beyond that the rows are sorted by group first.

    Raises ValueError for a reward that is not finite, naming the rows, for shapes that differ and
    for an unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if check not in CHECKS:
        raise ValueError(f"check must be one of {', '.join(CHECKS)}, got {check!r}")
    checks.check_groups(rewards, group_ids, group_size, mask)
    run = backends.choose("group_advantages", rewards.device.type, backend)
    return run(
        rewards.detach(),
        group_ids,
        group_size=group_size or 0,
        mask_B=mask,
        scale=scale,
        eps=eps,
        check=check == "raise",
    )


def _reference(
    rewards_B: Tensor, group_ids_B: Tensor | None, *, check: bool, **others: object
) -> Tensor:
    if check:
        checks.refuse_non_finite(rewards_B, others["mask_B"])
    return reference.group_advantages(rewards_B, group_ids_B, **others)


backends.register(
    "group_advantages",
    backends.cpu_backend(partial(torch_op.run, backend="cpu"), dtypes=None),
    backends.triton_backend(partial(torch_op.run, backend="triton"), dtypes=None),
    backends.Backend(name="reference", function=_reference),
)
