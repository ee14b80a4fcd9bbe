"""The passes of a policy loss over chunks of tokens; gradients come out of the forward pass.

Tokens are put in order first: those that may have a gradient, those wanted for the metrics alone,
and the rest, whose logits are never made. FLOPs, with T the tokens of each kind: 6 T D V for the
first (8 for gspo, whose clip needs every logprob of a row before any gradient), 2 T D V for the
second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from visa_kernels.grpo_loss.reference import Rows as TokenRows
from visa_kernels.linear_grpo_loss import plan
from visa_kernels.linear_grpo_loss.plan import Bounds, Terms
from visa_kernels.linear_logprobs import chunks, gemm
from visa_kernels.linear_logprobs import passes as logprob_passes
from visa_kernels.linear_logprobs.head import Head, Rows, Stats
from visa_kernels.linear_logprobs.passes import Gradients, selected

LARGEST_IN_FLOAT16 = 64.0
"""float16 gradients are scaled so that the largest is near this: small ones keep their digits, and
a ratio of a thousand still fits."""


class PolicyRows(Rows, Protocol):
    """Row kernels of a head that can take the policy loss along."""

    def policy(
        self,
        product_nV: Tensor,
        ids_n: Tensor,
        head: Head,
        stats_n: Stats,
        terms_n: Terms,
        bounds: Bounds,
        dlogprobs_n: Tensor,
    ) -> None:
        """Fill statistics and dlogprobs, and replace each row by the gradient of its product."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which tokens are taken through the head, and how far."""

    index: Tensor | None
    """Tokens with a gradient first, then those that are measured; None for all as they are."""
    moving: int
    measured: int
    scale: float
    """Power of two that the gradients of float16 are multiplied by; 1 for other types."""


def order_of(
    moves_T: Tensor, measured_T: Tensor, slopes_T: Tensor, half: bool, skip: bool
) -> Order:
    """Sort the tokens. With `skip`, a GPU is asked for three numbers here: the op's one host sync.

    slopes_T  about as large as dlogprobs will be
    half      whether gradients are float16
    """
    tokens = len(moves_T)
    if not skip:
        return Order(index=None, moving=tokens, measured=0, scale=_scale(tokens) if half else 1.0)
    kind = torch.where(moves_T, 0, torch.where(measured_T, 1, 2)).to(torch.uint8)
    largest = slopes_T.abs().amax() if tokens else slopes_T.new_zeros(())
    numbers = torch.stack([(kind == 0).sum(), (kind == 1).sum(), largest.double()]).tolist()
    moving, measured = int(numbers[0]), int(numbers[1])
    finite = 0 < numbers[2] < math.inf
    return Order(
        index=None if moving == tokens else kind.sort(stable=True).indices,
        moving=moving,
        measured=measured,
        scale=_scale(1 / numbers[2]) if half and finite else 1.0,
    )


def _scale(inverse: float) -> float:
    """A power of two near LARGEST_IN_FLOAT16 * inverse."""
    return 2.0 ** round(math.log2(LARGEST_IN_FLOAT16 * max(inverse, 2.0**-100)))


def fused(
    rows: PolicyRows,
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    terms: Terms,
    bounds: Bounds,
    order: Order,
    size: int,
    gradients: Gradients,
) -> Stats:
    """One pass for losses whose clip is a token's own; statistics of all tokens [T]."""
    stats = _fused_moving(rows, hidden, head, ids, terms, bounds, order, size, gradients)
    gradients.finish()
    rest = measure_rest(rows, hidden, head, ids, order, size)
    return scatter(stats, rest, order, len(ids))


def _fused_moving(
    rows: PolicyRows,
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    terms: Terms,
    bounds: Bounds,
    order: Order,
    size: int,
    gradients: Gradients,
) -> Stats:
    """The tokens that may have a gradient; a chunk's logits are let go before others are made."""
    tokens = order.moving
    index = None if order.index is None else order.index[:tokens]
    picked_ids, picked = (ids, terms) if index is None else (ids[index], terms[index])
    stats = Stats.empty(tokens, hidden)
    dlogprobs = torch.empty_like(stats.logprobs)
    size_of = size or chunks.chunk_tokens(tokens, head.weight, hidden.element_size())
    logits = chunks.buffer(min(size_of, tokens), head.weight, hidden.dtype)
    for part, places in selected(index, tokens, size_of):
        product = logits[: part.stop - part.start]
        hidden_nD = hidden[places]
        gemm.logits(hidden_nD, head.weight, product)
        slopes = dlogprobs[part]
        rows.policy(product, picked_ids[part], head, stats[part], picked[part], bounds, slopes)
        add_moving(gradients, product, hidden_nD, head, places, slopes)
    return stats


def add_moving(
    gradients: Gradients,
    dlogits_nV: Tensor,
    hidden_nD: Tensor,
    head: Head,
    places: slice | Tensor,
    slopes_n: Tensor,
) -> None:
    """Add a chunk's gradients, on a CPU without the rows that turned out to have none (clipped).

    The last rows are moved into the gaps, so few are copied. A GPU would have to wait for the
    number of such rows in each chunk, which costs more than the rows of zeros do.
    """
    tokens = len(slopes_n)
    if slopes_n.device.type != "cpu":
        gradients.add(dlogits_nV, hidden_nD, head, places)
        return
    active = slopes_n != 0
    count = int(active.sum())
    if count == tokens:
        gradients.add(dlogits_nV, hidden_nD, head, places)
    elif count:
        gaps = (~active[:count]).nonzero().squeeze(-1)
        last = active[count:].nonzero().squeeze(-1) + count
        dlogits_nV[gaps] = dlogits_nV[last]
        kept = torch.arange(count)
        kept[gaps] = last
        begin = places.start if isinstance(places, slice) else 0
        where = kept + begin if isinstance(places, slice) else places[kept]
        gradients.add(dlogits_nV[:count], hidden_nD[kept], head, where)


def measure_rest(
    rows: Rows, hidden: Tensor, head: Head, ids: Tensor, order: Order, size: int
) -> Stats | None:
    """Statistics of the tokens that only the metrics want."""
    if not order.measured:
        return None
    assert order.index is not None
    rest = order.index[order.moving : order.moving + order.measured]
    return logprob_passes.forward(rows, hidden, head, ids[rest], rest, size)


def scatter(moving: Stats, rest: Stats | None, order: Order, tokens: int) -> Stats:
    """Statistics in the order of the tokens, 0 for those that were left out."""
    if order.index is None:
        return moving
    every = Stats.empty(tokens, moving.logprobs)
    done = order.index[: order.moving + order.measured]
    for name in ("logprobs", "entropy", "shift", "log_sum"):
        parts = [getattr(stats, name) for stats in (moving, rest) if stats is not None]
        getattr(every, name).zero_().index_copy_(0, done, torch.cat(parts))
    return every


def by_sequence(
    rows: Rows,
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    terms: Terms,
    bounds: Bounds,
    token_rows: TokenRows,
    order: Order,
    skip: bool,
    size: int,
    gradients: Gradients,
) -> Stats:
    """Two passes for gspo: all logprobs, then the gradients of the rows that are not clipped."""
    known = order.moving + order.measured
    first = None if order.index is None else order.index[:known]
    taken = ids if first is None else ids[first]
    stats = logprob_passes.forward(rows, hidden, head, taken, first, size)
    stats = scatter(stats, None, Order(index=first, moving=known, measured=0, scale=1.0), len(ids))
    if not gradients.wanted:
        return stats
    slopes = plan.sequence_slopes(stats.logprobs, terms, token_rows, bounds) * order.scale
    moves = slopes != 0
    second = order_of(moves, torch.zeros_like(moves), slopes, False, skip)
    index = None if second.index is None else second.index[: second.moving]
    pick = slice(None) if index is None else index
    logprob_passes.backward(
        rows, hidden, head, ids[pick], stats[pick], slopes[pick], None, index, size, gradients
    )
    return stats
