"""Evaluation of a policy while it trains, and the best model so far.

The figures are those of `visa evaluate`: value cosine and L2 distance to the target, the published
consistency (2 fwd + bwd) / 3, and joint success.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from visa_core.config import EvaluationConfig
from visa_core.config.grpo_parts import HeldOutSettings
from visa_core.rewards import RewardOutput
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.actor import Actor
from visa_core.training.checkpoint import atomic_folder
from visa_core.types import RewriteExample, RolloutBatch

log = logging.getLogger("visa_core.training")

BEST = "best"
"""Folder of the best model, inside the run's."""
RECORD = "evaluation.json"
SEED = 0xE7A1
"""Of sampling, where the temperature is not 0: the same at every evaluation."""


class HeldOut:
    """Held-out records of a run, evaluated when due; the best model is written by `write`."""

    def __init__(
        self,
        actor: Actor,
        examples: Sequence[RewriteExample],
        settings: HeldOutSettings,
        out: Path,
        write: Callable[[Path], None],
    ) -> None:
        self.actor, self.settings, self.write = actor, settings, write
        self.world = actor.world
        self.folder = out / BEST
        self.examples = list(examples)[: settings.prompts]
        share = self.world.share(len(self.examples))
        self.first = share.start
        self.prompts = actor.ask([self.examples[i] for i in share])
        self.best = -math.inf

    def resume(self, first_step: int) -> None:
        """Know the best so far again. One that comes from a step that will be done again is
        forgotten: that step finds it again.
        """
        path = self.folder / RECORD
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["step"] < first_step:
                self.best = record[f"eval_{self.settings.metric}"]

    def evaluate(self, step: int, total_steps: int) -> dict[str, torch.Tensor | float]:
        """Figures of the weights after `step` where that step is due, else none; the model is kept
        where it is the best so far and that is asked for. All ranks call it.
        """
        done = step + 1
        if not self.examples or (done % self.settings.every and done != total_steps):
            return {}
        figures = self._measured()
        value = float(figures[f"eval_{self.settings.metric}"])
        if self.settings.keep_best and value > self.best:
            self.best = value
            self._keep({"step": step, **{k: float(v) for k, v in figures.items()}})
        return figures

    def _measured(self) -> dict[str, torch.Tensor | float]:
        actor = self.actor
        sampling = SamplingConfig(
            temperature=self.settings.temperature, max_new_tokens=actor.config.max_completion
        )
        found = torch.zeros(len(FIGURES), dtype=torch.float64)
        with actor.learner.whole():
            if self.prompts:
                rollouts = actor.engine.generate(
                    [p.ids for p in self.prompts],
                    1,
                    sampling,
                    SEED,
                    first_group=self.first,
                    stop_ids=actor.stop_ids,
                )
        actor.engine.release()
        if self.prompts:
            rewards = actor.scored(self.prompts, rollouts).rewards
            found = torch.stack([row.double().mean() for row in figures_of(rewards, rollouts)])
        named = {f"eval_{name}": value for name, value in zip(FIGURES, found, strict=True)}
        return self.world.average(named, len(self.prompts))

    def _keep(self, record: dict[str, float]) -> None:
        with self.actor.learner.whole():
            if self.world.is_main:
                with atomic_folder(self.folder) as scratch:
                    self.write(scratch)
                    (scratch / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            self.world.wait()
        log.info("best so far after step %d: %s", record["step"] + 1, self.folder)


FIGURES = ("joint", "cosine", "l2", "consistency", "fwd", "bwd", "reward", "length")


def figures_of(rewards: RewardOutput, rollouts: RolloutBatch) -> list[torch.Tensor]:
    """Figures of each rewrite [B] in the order of FIGURES."""
    limits = EvaluationConfig()
    scores = rewards.consistency
    joint = (rewards.l2 < limits.l2_below) & (scores.mean > limits.consistency_above)
    rows = [joint, rewards.cosine, rewards.l2, scores.mean, scores.fwd, scores.bwd]
    return [*rows, rewards.reward, rollouts.lengths]
