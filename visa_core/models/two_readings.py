"""Pairs read in bfloat16, and those whose decision is in doubt once more in float32.

Legend: R pieces, C labels, n pieces read both ways.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from visa_core.models.packed_pairs import PackedPairs

Pair = tuple[str, str]
Plan = Sequence[Sequence[int]]
"""Of one pair: for every hypothesis sentence, the pieces that read it against a premise chunk."""

RMS_SAFETY, LARGEST_SAFETY = 5.0, 1.5
"""Decisions closer than this many times the errors' root mean square, or than this many times the
largest one, are in doubt. The first is the larger where errors are spread normally, as an untrained
classifier's are; the second is for heavier tails, as a trained one's have.
"""
FEWEST = 8
"""Errors of fewer pieces give no root mean square."""
WRITTEN, DRAWN, CALIBRATED = 64, 16, 16
"""Fixed pairs of the embedded corpus and of random words, and how many of them, those nearest to a
tie, are read both ways at the first use.
"""
NEAREST = 32
"""One piece in this many, those nearest to a tie, is read both ways in each call."""

log = logging.getLogger(__name__)


class TwoReadings:
    """Logits of pieces so that every pair is decided as float32 decides it.

    What is guaranteed: a pair is read again in float32 unless its decision would stand if each
    difference of two logits were off by the tolerance. What is estimated: that no error exceeds the
    tolerance. It comes from the differences between both readings of pieces near ties, where a
    trained classifier errs most (eight times as much as where it is sure): some of the fixed pairs,
    one piece in NEAREST of the call, and all of the call that were in doubt; as long as these widen
    it, more pieces are read again. So it depends on the model and on the call, never on earlier
    calls. Float32 itself moves logits by about 1e-6 with the batch that a pair is read in: closer
    ties are decided either way, by it too.

    Pieces that are not read again keep bfloat16's error, so probabilities and what is made of them
    (consistency, rewards) differ a little from float32's: the built-in analyzer's entailment by at
    most 0.007 and by 0.0001 on average over 4,000 pairs, of which 3 % were read again. Thresholds
    of them are not guarded, and with several premise chunks the neutral and contradiction of
    another chunk may be taken where two entail a sentence about equally.
    """

    def __init__(
        self, packed: PackedPairs, columns: Sequence[int | None], limit: int
    ) -> None:
        """`columns` are the outputs of (entailment, neutral, contradiction), None for one that
        the model lacks; `limit` its longest pair in tokens.
        """
        self.packed, self.columns, self.limit = packed, columns, limit
        self.read, self.read_again = 0, 0
        self._errors: torch.Tensor | None = None
        self._versions: list[tuple[int, int]] = []
        self._warned = False

    @torch.inference_mode()
    def logits(self, pieces: Sequence[Pair], plans: Sequence[Plan]) -> torch.Tensor:
        """Logits [R, C] float32 on the CPU; `plans` say which pieces decide each pair."""
        fixed = self._calibrated()
        logits_RC = self.packed.logits(pieces, torch.bfloat16)
        own = _differences(logits_RC[:0])
        unread_R = torch.ones(len(pieces), dtype=torch.bool)
        wanted = set(_nearest(logits_RC, -(-len(pieces) // NEAREST)))
        while True:
            slack_R = torch.where(unread_R, tolerance(fixed, own), 0.0)
            again = sorted(wanted | doubtful(logits_RC, slack_R, plans, self.columns))
            if not again:
                break
            exact = self.packed.logits([pieces[i] for i in again])
            own = torch.cat([own, _differences(logits_RC[again] - exact)])
            logits_RC[again], unread_R[again], wanted = exact, False, set()
        self._count(len(pieces), len(pieces) - int(unread_R.sum()))
        return logits_RC

    def _calibrated(self) -> torch.Tensor:
        """Errors on fixed pairs; found again when the weights were changed."""
        versions = _versions(self.packed.model)
        if self._errors is None or versions != self._versions:
            pairs = calibration_pairs(self.packed.tokenizer.tokenizer, self.limit)
            rough = self.packed.logits(pairs, torch.bfloat16)
            near = _nearest(rough, CALIBRATED)
            exact = self.packed.logits([pairs[i] for i in near])
            self._errors, self._versions = _differences(rough[near] - exact), versions
        return self._errors

    def _count(self, pieces: int, again: int) -> None:
        self.read += pieces
        self.read_again += again
        if 2 * again > pieces >= NEAREST and not self._warned:
            self._warned = True
            log.warning(
                "bfloat16 saves nothing here: the decisions of %d of %d pieces were in doubt and "
                "read again in float32",
                again,
                pieces,
            )


def tolerance(*groups: torch.Tensor) -> torch.Tensor:
    """How far a difference of two logits may be off, from groups of errors [n, label pairs];
    infinite where there are none.
    """
    bounds = [LARGEST_SAFETY * errors.abs().max() for errors in groups if len(errors)]
    bounds += [
        RMS_SAFETY * errors.square().mean(0).sqrt().max()
        for errors in groups
        if len(errors) >= FEWEST
    ]
    return torch.stack(bounds).max() if bounds else torch.tensor(torch.inf)


def doubtful(
    logits_RC: torch.Tensor,
    slack_R: torch.Tensor,
    plans: Sequence[Plan],
    columns: Sequence[int | None],
) -> set[int]:
    """Pieces with slack of pairs that could be decided otherwise.

    slack_R  how far a difference of two logits of a piece may be off; 0 for one that is certain
    """
    low_R3, high_R3 = (x.numpy() for x in _bounds(logits_RC, slack_R, columns))
    top_R2 = logits_RC.topk(2).values
    is_clear = (top_R2[:, 0] - top_R2[:, 1] > slack_R).tolist()
    has_slack = (slack_R != 0).tolist()
    found: set[int] = set()
    for plan in plans:
        pieces = [piece for row in plan for piece in row]
        if not any(has_slack[piece] for piece in pieces):
            continue
        is_certain = is_clear[pieces[0]] if len(pieces) == 1 else _stands(plan, low_R3, high_R3)
        if not is_certain:
            found.update(piece for piece in pieces if has_slack[piece])
    return found


def _bounds(
    logits_RC: torch.Tensor, slack_R: torch.Tensor, columns: Sequence[int | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest probability triple of each piece, [R, 3] float64 each.

    p / (1 - p) moves by a factor of at most e^slack if every difference of logits moves by slack.
    """
    logits_RC, slack_R1 = logits_RC.double(), slack_R.double()[:, None]
    labels = range(logits_RC.shape[1])
    odds_RC = torch.stack(
        [
            logits_RC[:, k] - logits_RC[:, [j for j in labels if j != k]].logsumexp(1)
            for k in labels
        ],
        dim=1,
    )
    bounds = []
    for shifted_RC in (odds_RC - slack_R1, odds_RC + slack_R1):
        probs_RC = shifted_RC.sigmoid()
        absent_R = probs_RC.new_zeros(len(probs_RC))
        triples = [absent_R if k is None else probs_RC[:, k] for k in columns]
        bounds.append(torch.stack(triples, dim=1))
    return bounds[0], bounds[1]


def _stands(plan: Plan, low_R3: np.ndarray, high_R3: np.ndarray) -> bool:
    """Whether one label of a pair stays the most probable at every reading within the bounds.

    A sentence takes its triple from the chunk that entails it most: any chunk that may be it.
    Comparisons are such that NaN never stands.
    """
    least, most = np.zeros(3), np.zeros(3)
    for row in plan:
        low, high = low_R3[list(row)], high_R3[list(row)]
        may_be_best = ~(high[:, 0] < low[:, 0].max())
        least += low[may_be_best].min(axis=0)
        most += high[may_be_best].max(axis=0)
    return any(all(least[k] > most[j] for j in range(3) if j != k) for k in range(3))


def calibration_pairs(tokenizer: PreTrainedTokenizerBase, limit: int) -> list[Pair]:
    """Fixed pairs of at most `limit` tokens: texts of the embedded corpus, and random entries of
    the vocabulary, up to some 64 a text.
    """
    from visa_core.data.embedded import nli_pairs

    pairs = [(pair.premise, pair.hypothesis) for pair in nli_pairs(WRITTEN, 0)]
    special = set(tokenizer.all_special_ids)
    entries = [i for i in range(len(tokenizer)) if i not in special]
    draw = random.Random(0)
    for index in range(DRAWN):
        length = max(1, min(limit, 256) // 4 * (index + 1) // DRAWN)
        a, b = (tokenizer.decode(draw.choices(entries, k=length)) for _ in range(2))
        pairs.append((a, b))
    firsts, seconds = zip(*pairs, strict=True)
    rows = tokenizer(list(firsts), list(seconds), verbose=False)["input_ids"]
    return [pair for pair, row in zip(pairs, rows, strict=True) if len(row) <= limit]


def _nearest(logits_RC: torch.Tensor, count: int) -> list[int]:
    """The pieces whose two largest logits are nearest to each other."""
    top_R2 = logits_RC.topk(2).values
    return (top_R2[:, 0] - top_R2[:, 1]).argsort()[:count].tolist()


def _differences(errors_nC: torch.Tensor) -> torch.Tensor:
    """Errors of the differences of logits, [n, C (C - 1) / 2]."""
    labels = combinations(range(errors_nC.shape[1]), 2)
    return torch.stack([errors_nC[:, j] - errors_nC[:, k] for j, k in labels], dim=1)


def _versions(model: nn.Module) -> list[tuple[int, int]]:
    return [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in model.parameters()]
