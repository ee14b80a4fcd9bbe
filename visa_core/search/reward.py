"""What a temporary model is paid for: what it can do, less a weight times how far its values went.

K candidates   D values of the space
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from visa_core.evaluation.capability.math500 import TASK, Problem, is_right
from visa_core.evaluation.capability.mmlu import LETTERS, Subject, prefix_text, question_text
from visa_core.models.detector import Detector
from visa_core.search.candidates import Candidates


class Capability(Protocol):
    """Any callable that tells what each candidate can do, [K] in [0, 1]."""

    def __call__(self, candidates: Candidates) -> list[float]: ...


class Drift(Protocol):
    """How far each candidate's values are from the base's, [K], and what was read, a record
    each.
    """

    def __call__(self, candidates: Candidates) -> tuple[list[float], list[dict[str, Any]]]: ...

    def with_seed(self, seed: int) -> Self:
        """The same measure with answers drawn by another seed, its reference to be set."""
        ...

    def set_reference(self, base: Candidates) -> Any:
        """Read the base: one candidate without any training."""
        ...


class ExactAnswers:
    """Share of questions whose answer passes a check: `right(question's answer, text)`."""

    def __init__(
        self,
        questions: Sequence[str],
        answers: Sequence[Any],
        right: Any,
        *,
        max_tokens: int,
        batch_size: int = 64,
    ) -> None:
        self.questions, self.known, self.right = list(questions), list(answers), right
        self.max_tokens, self.batch_size = max_tokens, batch_size

    def __call__(self, candidates: Candidates) -> list[float]:
        texts = candidates.answers(
            self.questions, max_tokens=self.max_tokens, batch_size=self.batch_size
        )
        return [
            sum(bool(self.right(a, t)) for a, t in zip(self.known, own, strict=True)) / len(own)
            for own in texts
        ]


def math_answers(
    problems: Sequence[Problem], *, max_tokens: int, batch_size: int = 16
) -> ExactAnswers:
    """MATH-500 style: worked answers, greedy, checked by math-verify."""
    return ExactAnswers(
        [f"{TASK}\n\n{p.problem}" for p in problems],
        [p.answer for p in problems],
        is_right,
        max_tokens=max_tokens,
        batch_size=batch_size,
    )


class MultipleChoice:
    """MMLU by the likeliest of the letters A to D after the listed choices, over all questions."""

    def __init__(self, subjects: Sequence[Subject], token_budget: int = 16384) -> None:
        self.subjects, self.token_budget = list(subjects), token_budget

    def __call__(self, candidates: Candidates) -> list[float]:
        tokenizer = candidates.base.tokenizer
        letters = [tokenizer(f" {x}", add_special_tokens=False)["input_ids"] for x in LETTERS]
        if any(len(ids) != 1 for ids in letters):
            raise ValueError(
                "MMLU by letters needs a tokenizer with one token for each of ' A' to ' D'; the "
                "base model's has none: measure --capability math500 instead"
            )
        right, total = torch.zeros(candidates.count), 0
        for subject in self.subjects:
            prefix = tokenizer(prefix_text(subject, "letter"))["input_ids"]
            rows = [
                tokenizer(question_text(item, "letter"), add_special_tokens=False)["input_ids"]
                for item in subject.items
            ]
            scores_KQ4 = candidates.next_token(
                prefix, rows, [ids[0] for ids in letters], self.token_budget
            )
            answers_Q = torch.tensor([item.answer for item in subject.items])
            right += (scores_KQ4.argmax(-1) == answers_Q).sum(1)
            total += len(subject.items)
        return (right / total).tolist()


class ProfileDrift:
    """Mean absolute change of the detector's profile over probe questions: the fast proxy.

    A model's profile is the mean value vector that the detector reads off its sampled answers; the
    drift is the mean over dimensions of its distance from the base's profile, on the same random
    numbers. No judge is asked, so it says nothing of what the detector cannot read.
    """

    def __init__(
        self,
        detector: Detector,
        probes: Sequence[str],
        *,
        max_tokens: int,
        temperature: float = 0.7,
        samples: int = 1,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        if not probes:
            raise ValueError("value drift needs at least one probe question")
        self.detector, self.probes = detector, list(probes) * samples
        self.settings = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "batch_size": batch_size,
        }
        self.reference: torch.Tensor | None = None

    def with_seed(self, seed: int) -> ProfileDrift:
        """The same probes with answers drawn by another seed; its reference is to be set."""
        other = copy.copy(self)
        other.settings = self.settings | {"seed": seed}
        other.reference = None
        return other

    def profiles(self, candidates: Candidates) -> torch.Tensor:
        """Mean value vector of each candidate's answers, [K, D]."""
        texts = candidates.answers(self.probes, **self.settings)
        flat = [text for own in texts for text in own]
        values = self.detector.predict(self.probes * candidates.count, flat)
        return values.view(candidates.count, len(self.probes), -1).mean(1)

    def set_reference(self, base: Candidates) -> torch.Tensor:
        """Read the base's own profile, [D]; `base` is one candidate without any training."""
        self.reference = self.profiles(base)[0]
        return self.reference

    def __call__(self, candidates: Candidates) -> tuple[list[float], list[dict[str, Any]]]:
        assert self.reference is not None, "set_reference first"
        profiles_KD = self.profiles(candidates)
        drifts = (profiles_KD - self.reference).abs().mean(1).tolist()
        return drifts, [{"profile": profile} for profile in profiles_KD.tolist()]


@dataclass(frozen=True)
class Reward:
    """capability - weight * drift."""

    capability: Capability
    drift: Drift
    weight: float

    def __call__(self, candidates: Candidates) -> list[dict[str, Any]]:
        """A record a candidate: reward, capability, drift, and what the drift read."""
        capabilities = self.capability(candidates)
        drifts, read = self.drift(candidates)
        return [
            {"reward": c - self.weight * d, "capability": c, "drift": d, **more}
            for c, d, more in zip(capabilities, drifts, read, strict=True)
        ]
