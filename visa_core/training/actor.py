"""The actor of GRPO: records to prompts, prompts to completions, completions to rewards.

Shapes: P prompts of a step, G completions each, B = P * G rows, K value dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from visa_core.config import GRPOConfig
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.rewards import RewardModel, RewardOutput
from visa_core.rollout.chunks import generate_in_chunks
from visa_core.rollout.engine import Engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.clock import Clock
from visa_core.training.distributed import World, pick_device
from visa_core.training.experience import Experience, joined_experience, replaced
from visa_core.training.learner import Learner
from visa_core.training.micro_batches import FLAT
from visa_core.training.run import batch_rows, step_seed
from visa_core.training.targets import predicted_targets
from visa_core.types import Prompt, RewriteExample, RolloutBatch
from visa_kernels import group_advantages

FRESH = 0x5EED
"""Added to the seed for prompts that are drawn again: an order of their own."""


class Scorers:
    """The frozen parts: what reads values, what shifts them, what rewards."""

    def __init__(self, config: GRPOConfig, world: World) -> None:
        device = world.device if config.scorer_device is None else pick_device(config.scorer_device)
        self.device = device
        self.detector = Detector.from_pretrained(config.detector).to(device)
        self.translator = None
        if config.translator is not None:
            self.translator = Translator.from_pretrained(config.translator).to(device)
        facts = FactAnalyzer.from_pretrained(
            config.fact_analyzer, device=device, precision=config.fact_precision
        )
        self.reward = RewardModel(self.detector, facts, config.reward)

    def rate(
        self, prompts: Sequence[Prompt], rollouts: RolloutBatch, rewrites: list[str]
    ) -> RewardOutput:
        """Rewards of all rows, each against its prompt's source and target."""
        asked = [prompts[i] for i in rollouts.group_ids.tolist()]
        return self.reward.score(
            [p.query for p in asked],
            [p.source for p in asked],
            rewrites,
            torch.stack([p.target for p in asked]),
            finished=rollouts.finished,
        )


class Actor:
    """Samples with the engine from the weights as they are, and has the completions scored."""

    def __init__(
        self,
        rewriter: Rewriter,
        engine: Engine,
        learner: Learner,
        scorers: Scorers,
        examples: list[RewriteExample],
        config: GRPOConfig,
        world: World,
    ) -> None:
        self.rewriter, self.engine, self.learner = rewriter, engine, learner
        self.scorers, self.examples = scorers, examples
        self.config, self.world = config, world
        self.sampling = SamplingConfig(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            max_new_tokens=config.max_completion,
        )
        self.stop_ids = stop_ids(rewriter, config.stop_tokens)
        self._second = ThreadPoolExecutor(1) if config.overlap else None

    def close(self) -> None:
        """End the second thread."""
        if self._second is not None:
            self._second.shutdown()

    def prompts(self, step: int, clock: Clock) -> list[Prompt]:
        """This rank's share of the step's prompts, each with its target v*."""
        config = self.config
        rows = batch_rows(len(self.examples), config.prompts, config.seed, step).tolist()
        with clock.timed("target"):
            return self.ask([self.examples[rows[i]] for i in self.world.share(config.prompts)])

    def ask(self, batch: Sequence[RewriteExample]) -> list[Prompt]:
        """Prompts of records: query, response and v* = clip(D(q, y) + T(I, q, y), -1, 1)."""
        if not batch:
            return []
        space, scorers = self.rewriter.space, self.scorers
        targets = predicted_targets(batch, scorers.detector, scorers.translator, space)
        rows = zip(batch, targets, strict=True)
        return [self.rewriter.prompt(e.query, e.response, target) for e, target in rows]

    def collect(
        self, prompts: Sequence[Prompt], seed: int, first_group: int, clock: Clock
    ) -> Experience:
        """G completions of each prompt and their rewards; all ranks call it at the same time.

        Chunk after chunk: with `overlap` one is scored while the next is sampled.
        """
        ids, size = [p.ids for p in prompts], self.config.chunk or len(prompts)
        rollouts = generate_in_chunks(
            self.engine,
            ids,
            self.config.group_size,
            self.sampling,
            seed,
            size=size,
            first_group=first_group,
            stop_ids=self.stop_ids,
        )
        results: list[Callable[[], Experience]] = []
        with self.learner.whole(), clock.timed("sample"):
            for start in range(0, len(prompts), size):
                job = partial(self.scored, prompts[start : start + size], next(rollouts))
                results.append(self._start(job))
        self.engine.release()
        with clock.timed("score"):
            return joined_experience([result() for result in results])

    def scored(self, prompts: Sequence[Prompt], rollouts: RolloutBatch) -> Experience:
        """Rollouts read and rewarded."""
        rewrites = self.rewriter.decode(rollouts)
        rewards = self.scorers.rate(prompts, rollouts, rewrites)
        return Experience(
            prompts=list(prompts), rollouts=rollouts, rewrites=rewrites, rewards=rewards
        )

    def _start(self, job: Callable[[], Experience]) -> Callable[[], Experience]:
        """The job's result, later: begun now in the second thread, or when it is asked for."""
        if self._second is None:
            return job
        device = self.scorers.device
        run = in_own_stream if device.type == "cuda" else _now
        return self._second.submit(run, job, device).result

    def advantages(self, rewards_B: torch.Tensor) -> torch.Tensor:
        """Advantages of all ranks' rows, from this rank's rewards, on every rank."""
        size = self.config.group_size
        own = self.world.share(self.config.prompts)
        rows = range(own.start * size, own.stop * size)
        whole = self.world.gather(rewards_B, rows, self.config.completions)
        return group_advantages(whole, group_size=size, scale=self.config.advantage_scale)

    def informative(
        self, batch: Experience, step: int, clock: Clock
    ) -> tuple[Experience, torch.Tensor, int]:
        """The batch, this rank's advantages [B], and how many prompts all ranks have drawn again.

        While less than `resample.below` of all ranks' groups is informative, the others' places
        are taken by fresh prompts, at most `resample.tries` times. Which ones is the same for any
        number of ranks.
        """
        config, drawn = self.config, 0
        own = self.world.share(config.prompts)
        for attempt in range(config.resample.tries + 1):
            advantages = self.advantages(batch.rewards.reward).view(config.prompts, -1)
            flat = (advantages.abs().amax(1) < FLAT).nonzero()[:, 0].tolist()
            enough = 1 - len(flat) / config.prompts >= config.resample.below
            if enough or attempt == config.resample.tries:
                break
            mine = [place for place in flat if place in own]
            first = sum(place < own.start for place in flat)
            fresh = self._fresh_prompts(step, attempt, first, len(mine), clock)
            seed = step_seed(config.seed + FRESH, step * config.resample.tries + attempt)
            if fresh:
                found = self.collect(fresh, seed, first, clock)
                batch = replaced(batch, [place - own.start for place in mine], found)
            else:
                with self.learner.whole():  # the other ranks sample
                    pass
            drawn += len(flat)
        return batch, advantages[own.start : own.stop].flatten(), drawn

    def _fresh_prompts(
        self, step: int, attempt: int, first: int, number: int, clock: Clock
    ) -> list[Prompt]:
        config = self.config
        at = step * config.resample.tries + attempt
        rows = batch_rows(len(self.examples), config.prompts, config.seed + FRESH, at).tolist()
        with clock.timed("target"):
            return self.ask([self.examples[row] for row in rows[first : first + number]])


def _now(job: Callable[[], Experience], device: torch.device) -> Experience:
    return job()


def in_own_stream(job: Callable[[], Experience], device: torch.device) -> Experience:
    """The job on a stream of its own, so that it does not queue behind what is being sampled."""
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        found = job()
    stream.synchronize()
    return found


def stop_ids(rewriter: Rewriter, more: Sequence[str]) -> list[int]:
    """The model's own stop tokens and those that are named. Raises ValueError for one that is no
    single token of its vocabulary.
    """
    words = rewriter.tokenizer.get_vocab()
    unknown = [token for token in more if token not in words]
    if unknown:
        raise ValueError(
            f"--stop-tokens: {', '.join(map(repr, unknown))} is no token of the model's "
            "vocabulary; give whole tokens as tokenizer.json names them"
        )
    return sorted({*rewriter.stop_ids, *(words[token] for token in more)})
