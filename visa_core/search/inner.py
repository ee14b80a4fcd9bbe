"""The inner loop: rewrite the task's responses toward each candidate, update the base on them,
measure.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visa_core.config.search import UpdateConfig
from visa_core.search.adapters import CandidateAdapters, weights_digest
from visa_core.search.candidates import Base, Candidates
from visa_core.search.reward import Reward
from visa_core.search.rewrites import CachedRewriter, Example, Rewrite
from visa_core.search.updates import Row, mock_update

log = logging.getLogger("visa_core.search")


class BaseChanged(AssertionError):
    """The frozen base has other weights than at the start: an error of this program."""


@dataclass(frozen=True)
class InnerLoop:
    """Everything that turns candidates into rewards; a `Measure` of the outer loop.

    Mock updates of all iterations start from the same adapters and see the same row numbers, so
    that rewards differ by the candidates alone.
    """

    base: Base
    rewriter: CachedRewriter
    examples: Sequence[Example]
    update: UpdateConfig
    reward: Reward
    seed: int = 0

    def __call__(self, candidates_KD: np.ndarray, iteration: int) -> list[dict[str, Any]]:
        """A record a candidate: reward, capability, drift, loss, and the share of rewrites cut."""
        rewrites = self.rewriter.rewrite(self.examples, candidates_KD)
        models, losses = self.updated([[r.text for r in own] for own in rewrites])
        records = self.reward(models)
        for record, loss, own in zip(records, losses, rewrites, strict=True):
            if loss != loss:  # its model is not one: whatever it answers is worth nothing
                record["reward"] = float("nan")
            record |= {"loss": loss, "cut": cut_share(own)}
        return records

    def updated(self, responses: Sequence[Sequence[str]]) -> tuple[Candidates, list[float]]:
        """Temporary models of the base trained on each list of responses, and their last losses.

        Raises BaseChanged if the base did not stay as it was.
        """
        before = weights_digest(self.base.model)
        config = self.update
        adapters = CandidateAdapters(
            self.base.model,
            len(responses),
            rank=config.rank,
            alpha=config.alpha,
            targets=config.targets,
            seed=self.seed,
        )
        losses = mock_update(
            self.base.model,
            adapters,
            [self.rows(own) for own in responses],
            config,
            pad_id=self.base.pad_id,
            seed=self.seed,
        )
        if weights_digest(self.base.model) != before:
            raise BaseChanged("the mock update wrote into the frozen base")
        return Candidates(self.base, adapters), losses

    def rows(self, responses: Sequence[str]) -> list[Row]:
        """Training rows of the task's questions with these responses."""
        return [
            Row(self.base.prompt(example.query), self.base.completion(response))
            for example, response in zip(self.examples, responses, strict=True)
        ]

    def untrained(self) -> Candidates:
        """The base itself as one candidate: its adapter adds nothing."""
        config = self.update
        adapters = CandidateAdapters(
            self.base.model, 1, rank=config.rank, targets=config.targets, seed=self.seed
        )
        return Candidates(self.base, adapters)


def cut_share(rewrites: Sequence[Rewrite]) -> float:
    """Share of rewrites that did not come to their end."""
    return sum(not rewrite.finished for rewrite in rewrites) / len(rewrites)
