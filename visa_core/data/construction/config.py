"""Settings of data construction. Nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from visa_core.endpoints.config import ChatConfig


@dataclass(frozen=True, kw_only=True)
class AnnotatorConfig:
    """Who reads the values of the two responses of a comparison."""

    kind: Literal["lexicon", "chat"] = "lexicon"
    """lexicon: counts English value words and needs nothing. chat: a chat model, see `chat`."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """The chat model: an endpoint's (also a local vLLM server's), or a Hugging Face folder."""
    prompt: Path | None = None
    """Prompt file in place of the package's own (annotate/prompts/compare.txt)."""
    reasks: int = 2
    """How often an invalid answer is asked for again before the comparison is set aside."""
    max_tokens: int = 800
    """Longest answer in tokens."""
    temperature: float = 0.0
    """Sampling temperature of a chat model; 0 is greedy."""
    retry_invalid: bool = False
    """Ask again for what stayed invalid in an earlier run."""
    engine: Literal["local", "ray"] = "local"
    """ray: annotate on the machines of a Ray cluster (extra "ray"), with the same results."""
    actors: int = 2
    """Annotators that Ray runs at once."""

    def __post_init__(self) -> None:
        if self.reasks < 0:
            raise ValueError(f"reasks must be at least 0, got {self.reasks}")
        for name in ("max_tokens", "actors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.kind == "chat" and not self.chat.model:
            raise ValueError(
                "a chat annotator needs a model: a name at chat.base_url, or a local model folder"
            )


@dataclass(frozen=True, kw_only=True)
class TripletConfig:
    """Which annotated comparisons become triplets, and how these are split."""

    ambiguous_share: float = 0.15
    """Share of comparisons that is dropped: those whose responses' vectors vary most over the
    comparisons that they stand in. Responses whose vectors do not vary are never dropped."""
    anchors: Literal["both", "chosen"] = "both"
    """Whose ambiguity counts: the larger of both responses', or the chosen one's as published."""
    min_shift: float = 0.5
    """Comparisons whose vectors are closer than this (L2) are dropped; the smallest step of the
    scale is 0.5, so the default drops equal vectors only."""
    near: float = 0.85
    """Texts whose sets of word triples have at least this Jaccard similarity (estimated by MinHash)
    count as one text when duplicates are dropped and splits are made; 1 compares exactly."""
    validation: float = 0.05
    """Share of prompts in the validation split."""
    test: float = 0.05
    """Share of prompts in the test split."""
    seed: int = 0
    """Which prompts go to which split."""

    def __post_init__(self) -> None:
        for name in ("ambiguous_share", "validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave no prompts for training")
        if not 0 <= self.min_shift < math.inf:
            raise ValueError(f"min_shift must be at least 0, got {self.min_shift}")
        if not 0 < self.near <= 1:
            raise ValueError(f"near must be in (0, 1], got {self.near}")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """From preferences with explanations to triplets of source, target values and rewrite."""

    data: tuple[str, ...]
    """Preferences, one or more of ca:PATH (Community Alignment: CSV, Parquet or a `datasets`
    folder), hh:PATH, jsonl:PATH[,FIELD=KEY ...], embedded[:PROMPTS[,SEED]] (needs no file)."""
    out: Path
    """Folder for everything; given again after a kill, the run goes on with what was answered."""
    languages: tuple[str, ...] = ()
    """Only these, as the data names them (Community Alignment: en fr it pt hi)."""
    n: int | None = None
    """Only the first N comparisons."""
    cache: Path | None = None
    """SQLite file of answers, which several builds may share; OUT/answers.sqlite without it."""
    space: Path | None = None
    """JSON file of another value space than Schwartz's ten values."""
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    """Who reads the values."""
    triplets: TripletConfig = field(default_factory=TripletConfig)
    """What is kept."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: give at least one kind of data")
        if self.n is not None and self.n < 1:
            raise ValueError(f"--n must be at least 1, got {self.n}")

    @property
    def cache_path(self) -> Path:
        """Where answers are kept."""
        return self.cache or self.out / "answers.sqlite"
