"""Typed records that flow between data, models, trainers and evaluation.

Shape legend, used in names and docstrings everywhere:
    B  rows of a batch            K  dimensions of the value space (10 for Schwartz)
    P  prompts of a step          G  completions per prompt
    T  completion tokens          N  tokens of a packed batch (cu_seqlens [B + 1] gives the rows)
    V  vocabulary                 D  hidden size
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import torch

VectorDict = dict[str, float]
"""A value vector by dimension name; absent names are 0, so that files stay readable and
independent of order.
"""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A query, a response, and the values the response expresses (None when unknown)."""

    query: str
    response: str
    values: VectorDict | None = None
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class RewriteExample:
    """One rewriting task. `shift` is what the instruction asks for, `reference` a (possibly
    imperfect) rewrite.
    """

    query: str
    response: str
    instruction: str
    values: VectorDict | None = None
    shift: VectorDict | None = None
    target: VectorDict | None = None
    reference: str | None = None
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class NLIPair:
    """A premise and a hypothesis; `label` is one of entailment, neutral, contradiction."""

    premise: str
    hypothesis: str
    label: str
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, which one a person chose, and why."""

    prompt: str
    chosen: str
    rejected: str
    explanation: str = ""
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the rewriter is asked: the ids it reads, and what its rewrite is scored against.

    `target` [K] is the wanted value vector v*, float32.
    """

    ids: list[int]
    query: str
    source: str
    target: torch.Tensor


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """A stop token was sampled; it is the row's last token."""
    LENGTH = "length"
    """The length limit cut it."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """Completions as the trainer sees them, packed without padding.

    tokens      [N]      int64, completion tokens, rows one after another (stop token included when
                         sampled)
    cu_seqlens  [B + 1]  int64, row b is tokens[cu_seqlens[b]:cu_seqlens[b + 1]]
    group_ids   [B]      int64, index of the prompt each row answers
    logprobs    [N]      float32, the sampler's own, after temperature and truncation
    finished    [B]      bool, False when the row was cut at the length limit
    """

    tokens: torch.Tensor
    cu_seqlens: torch.Tensor
    group_ids: torch.Tensor
    logprobs: torch.Tensor
    finished: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens per row, [B] int64."""
        return self.cu_seqlens.diff()

    @property
    def finish_reasons(self) -> list[FinishReason]:
        """Why each row ended, [B]; `finished` as words."""
        return [FinishReason.STOP if f else FinishReason.LENGTH for f in self.finished.tolist()]

    def rows(self) -> list[list[int]]:
        """Token ids of each row as lists, for decoding."""
        return [row.tolist() for row in self.tokens.split(self.lengths.tolist())]


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Factual consistency of rewrites with their sources, each [B] float32 in [0, 1].

    fwd  P(rewrite entails source): nothing was lost.
    bwd  P(source entails rewrite): nothing was invented.
    mean (2 fwd + bwd) / 3, the published mixture.
    """

    fwd: torch.Tensor
    bwd: torch.Tensor
    mean: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A record set aside, with where it stood and why."""

    path: str
    line: int
    reason: str
    text: str = field(default="", repr=False)
