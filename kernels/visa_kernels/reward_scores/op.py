"""Rewards of completions and their advantages from the raw outputs of detector and NLI model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visa_kernels import backend as backends
from visa_kernels.reward_scores import registration
from visa_kernels.reward_scores.reference import NON_FINITE, OUTPUTS
from visa_kernels.reward_scores.reference import reward_scores as plain

__all__ = ["NON_FINITE", "Pieces", "RewardScores", "reward_scores"]

CHOICES = {
    "form": ("sum", "product", "gated"),
    "consistency": ("geometric", "min", "published"),
    "activation": ("none", "clamp", "tanh"),
    "non_finite": ("nan", "worst"),
    "scale": ("group", "batch", "none"),
}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Pieces(NamedTuple):
    """Which rows of an NLI model's output make up one direction of each completion.

    sentences  [B + 1] integers: completion b is sentences sentences[b] : sentences[b + 1]
    chunks     [S + 1] integers: sentence s is pieces chunks[s] : chunks[s + 1]
    rows       [P] integers: the output's row of each piece, so that a pair that occurs twice is
               scored once; None where piece p is row p

    A completion without sentences states nothing: its entailment is 0.
    """

    sentences: Tensor
    chunks: Tensor
    rows: Tensor | None = None


class RewardScores(NamedTuple):
    """Scores of B completions, each [B] float32 (float64 for float64 values)."""

    reward: Tensor
    advantage: Tensor | None
    """None where no groups were given."""
    cosine: Tensor
    """Of values and target as measured; `neutral_norm` acts on the reward alone."""
    l2: Tensor
    fwd: Tensor
    bwd: Tensor
    semantic: Tensor
    """The consistency term of the reward."""
    non_finite: Tensor
    """uint8, 0 where all is well; otherwise bits of NON_FINITE say what was NaN or infinite."""


def reward_scores(
    values: Tensor,
    targets: Tensor,
    fwd: Tensor,
    bwd: Tensor,
    *,
    group_size: int | None = None,
    cu_groups: Tensor | None = None,
    group_ids: Tensor | None = None,
    value_rows: Tensor | None = None,
    fwd_pieces: Pieces | None = None,
    bwd_pieces: Pieces | None = None,
    penalty: Tensor | None = None,
    worst: Tensor | None = None,
    entailment: int = 0,
    activation: str = "none",
    limit: float = 1.0,
    form: str = "sum",
    consistency: str = "geometric",
    w_val: float = 1.0,
    w_sem: float = 1.0,
    gate: float = 0.5,
    neutral_norm: float = 0.0,
    distance_weight: float = 0.0,
    non_finite: str = "nan",
    scale: str = "group",
    eps: float = 1e-4,
    backend: str | None = None,
) -> RewardScores:
    """Reward and advantage of B completions, one launch on a GPU, no sync.

    values      [B, K] detector scores; [U, K] with `value_rows` [B], which takes row
                value_rows[b], or zeros (no values) for -1
    activation  "clamp": values are cut to [-limit, limit], as a Detector's are; "tanh": they become
                limit * tanh(values); "none": as they stand
    targets     [B, K]
    fwd, bwd    probability that the rewrite entails its source, and the source its rewrite: [B],
                or logits [B, C] whose column `entailment` means entailment. With `Pieces`, [R] or
                [R, C]: the best chunk of each sentence counts, and the mean over sentences
                (SummaC-ZS, arXiv:2111.09525)
    groups      group_size: completions of a prompt are adjacent, `group_size` each; cu_groups
                [G + 1]: ragged and adjacent; group_ids [B]: in any order, sorted first, which adds
                small launches. None of them: advantage is None
    penalty     [B], taken off the reward: repetition, length, an unfinished text
    worst       [B] bool, rows that get the worst reward outright: blank texts

    semantic = sqrt(fwd bwd) ("geometric"), the smaller one ("min"), or (2 fwd + bwd) / 3
    ("published"). reward = w_val cos + w_sem semantic ("sum"), the same with cos = -1 while
    semantic < gate ("gated"), or ((1 + cos) / 2)^w_val semantic^w_sem ("product"); then less
    distance_weight * |values - target| and the penalty, but no less than the form's worst, which is
    -w_val, or 0 of a product. The cosine of a zero vector (norm <= 1e-8) is 0, of two of them 1;
    values shorter than `neutral_norm` count as zero in the reward.
    advantage = (reward - group mean) / (std + eps), as `group_advantages` has it: `scale` "group",
    "batch" or "none"; equal rewards of a group give exact zeros.

    A row with a NaN or infinite input, an infinite detector score included, has its bits set in
    `non_finite`. Its reward is NaN, and so is the advantage of all rows of its group (of all rows
    under scale "batch"): a group that is in part unknown has no mean. With non_finite="worst" such
    rows get the worst reward instead, which the group's mean counts. Nothing is read back from the
    device.

    Computed in float32, in float64 for float64 values, which the reference alone takes. Not
    differentiable.

    Raises ValueError for shapes or devices that do not fit, an unknown name, and more than one kind
    of groups.
    On the CPU it also checks rows, pieces and groups, which on a GPU would cost a sync.
    """
    settings = {
        "form": form,
        "consistency": consistency,
        "activation": activation,
        "non_finite": non_finite,
        "scale": scale,
    }
    for name, value in settings.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
    rows = len(targets)
    _check_shapes(values, targets, value_rows, penalty, worst)
    _check_nli("fwd", fwd, fwd_pieces, rows, entailment)
    _check_nli("bwd", bwd, bwd_pieces, rows, entailment)
    size, cu, order = _groups(rows, group_size, cu_groups, group_ids)
    tensors = {
        "values": values.detach(),
        "value_rows": value_rows,
        "targets": targets.detach(),
        **_nli_tensors("fwd", fwd, fwd_pieces),
        **_nli_tensors("bwd", bwd, bwd_pieces),
        "penalty": None if penalty is None else penalty.detach(),
        "worst": worst,
        "cu_groups": cu,
        "order": order,
    }
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != values.device:
            raise ValueError(f"{name} is on {tensor.device}, but values are on {values.device}")
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_contents(tensors, rows)
    run = backends.choose("reward_scores", values.device.type, backend, dtype=values.dtype)
    scores, bits = run(
        **tensors,
        **settings,
        group_size=size,
        entailment=entailment,
        limit=float(limit),
        w_val=float(w_val),
        w_sem=float(w_sem),
        gate=float(gate),
        neutral_norm=float(neutral_norm),
        distance_weight=float(distance_weight),
        eps=float(eps),
    )
    named = dict(zip(OUTPUTS, scores.unbind(0), strict=True))
    if not size and cu is None:
        named["advantage"] = None
    return RewardScores(**named, non_finite=bits)


def _check_shapes(
    values: Tensor,
    targets: Tensor,
    value_rows: Tensor | None,
    penalty: Tensor | None,
    worst: Tensor | None,
) -> None:
    if targets.ndim != 2 or values.ndim != 2 or values.shape[1] != targets.shape[1]:
        raise ValueError(
            "values and targets must be [B, K], "
            f"got {tuple(values.shape)} and {tuple(targets.shape)}"
        )
    if values.dtype not in _FLOATS:
        raise ValueError(f"values must be floating point, got {values.dtype}")
    rows = len(targets)
    if value_rows is None and len(values) != rows:
        raise ValueError(f"{len(values)} rows of values for {rows} targets: give value_rows")
    for name, tensor in (("value_rows", value_rows), ("penalty", penalty), ("worst", worst)):
        if tensor is not None and tensor.shape != (rows,):
            raise ValueError(f"{name} must be [{rows}], got {tuple(tensor.shape)}")
    if worst is not None and worst.dtype != torch.bool:
        raise ValueError(f"worst must be bool, got {worst.dtype}")


def _check_nli(name: str, scores: Tensor, pieces: Pieces | None, rows: int, label: int) -> None:
    if scores.ndim not in (1, 2) or scores.dtype not in _FLOATS:
        raise ValueError(
            f"{name} must be probabilities [B] or logits [B, C], "
            f"got {tuple(scores.shape)} of {scores.dtype}"
        )
    if scores.ndim == 2 and not 0 <= label < scores.shape[1]:
        raise ValueError(f"entailment is column {label} of {name}, which has {scores.shape[1]}")
    if pieces is None and len(scores) != rows:
        raise ValueError(f"{name} has {len(scores)} rows for {rows} targets: give {name}_pieces")
    if pieces is not None and pieces.sentences.shape != (rows + 1,):
        raise ValueError(
            f"{name}_pieces.sentences must be [{rows + 1}], got {tuple(pieces.sentences.shape)}"
        )


def _nli_tensors(name: str, scores: Tensor, pieces: Pieces | None) -> dict[str, Tensor | None]:
    sentences, chunks, rows = pieces or (None, None, None)
    return {
        name: scores.detach(),
        f"{name}_sentences": sentences,
        f"{name}_chunks": chunks,
        f"{name}_rows": rows,
    }


def _groups(
    rows: int, size: int | None, cu: Tensor | None, ids: Tensor | None
) -> tuple[int, Tensor | None, Tensor | None]:
    """(group size or 0, ends of groups or None, order of rows or None)."""
    given = [
        name
        for name, value in (("group_size", size), ("cu_groups", cu), ("group_ids", ids))
        if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"give one of group_size, cu_groups and group_ids, not {given}")
    if size is not None and (size < 1 or rows % size):
        raise ValueError(f"{rows} completions are no multiple of group_size {size}")
    if ids is None:
        return size or 0, cu, None
    if ids.shape != (rows,):
        raise ValueError(f"group_ids must be [{rows}], got {tuple(ids.shape)}")
    ids_B, order_B = torch.sort(ids, stable=True)
    number_B = (ids_B[1:] != ids_B[:-1]).cumsum(0)
    number_B = torch.cat([number_B.new_zeros(min(rows, 1)), number_B])
    # As many groups as rows, the last ones empty: their true number would have to be read back.
    every = torch.arange(rows + 1, device=ids.device)
    return 0, torch.searchsorted(number_B, every), order_B


def _check_contents(tensors: dict[str, Tensor | None], rows: int) -> None:
    _check_rows("value_rows", tensors["value_rows"], len(tensors["values"]))
    _check_ends("cu_groups", tensors["cu_groups"], rows)
    for name in ("fwd", "bwd"):
        sentences, chunks = tensors[f"{name}_sentences"], tensors[f"{name}_chunks"]
        if sentences is None:
            continue
        picked, scores = tensors[f"{name}_rows"], tensors[name]
        _check_ends(f"{name}_pieces.sentences", sentences, len(chunks) - 1)
        _check_ends(f"{name}_pieces.chunks", chunks, len(scores if picked is None else picked))
        _check_rows(f"{name}_pieces.rows", picked, len(scores))


def _check_rows(name: str, rows: Tensor | None, count: int) -> None:
    if rows is None or not len(rows):
        return
    low, high = (int(x) for x in torch.aminmax(rows))
    if low < -1 or high >= count:
        raise ValueError(f"{name} must lie in -1 .. {count - 1}, got {low} .. {high}")


def _check_ends(name: str, cu: Tensor | None, count: int) -> None:
    if cu is None:
        return
    ends = cu.numpy()
    if cu.ndim != 1 or not len(ends) or ends[0] != 0 or ends[-1] != count:
        raise ValueError(f"{name} must rise from 0 to {count}, got {ends[:8].tolist()} ...")
    if (ends[1:] < ends[:-1]).any():
        raise ValueError(f"{name} must not fall, got {ends[:8].tolist()} ...")


backends.register(
    "reward_scores",
    *registration.kernels(),
    backends.Backend(name="reference", function=plain),
)
