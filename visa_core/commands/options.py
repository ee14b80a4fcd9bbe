"""Options of the commands that are no training stage. Nothing heavy is imported here, so that
`visa --help` is at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """The whole job on the embedded corpus: data, training, evaluation, report."""

    out: Path = Path("visa-out")
    """Folder for data, models and report; afterwards a system folder for rewrite and detect."""
    seed: int = 0
    """Seed of everything."""
    smoke: bool = False
    """A short run that only shows that every part works."""
    baselines: bool = False
    """Train by DPO and SimPO too, from the same SFT model and with the same reward as GRPO. Can be
    added to a finished run."""


@dataclass(frozen=True, kw_only=True)
class RewriteOptions:
    """Rewrite a response towards other values: one from the command line, or a file of them."""

    model: Path
    """System folder, such as the one that `visa quickstart --out` wrote."""
    query: str | None = None
    """What was asked."""
    response: str | None = None
    """The answer to rewrite."""
    instruction: str | None = None
    """What to change, in words; the target follows from it and from the response's own values."""
    target: str | None = None
    """The wanted values themselves, NAME=NUMBER pairs in [-1, 1] joined by commas, such as
    "security=1,power=-0.5"; values not named are 0."""
    input: Path | None = None
    """JSON lines instead of --query: {"query", "response", and "instruction" or "target"}."""
    output: Path | None = None
    """Where the rows of --input go, with their rewrites; bad rows go to NAME.rejected.jsonl."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    seed: int = 0
    """Seed of sampling."""
    batch_size: int = 64
    """Rows rewritten at once."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        single = [
            name for name in ("query", "response", "instruction", "target") if self._has(name)
        ]
        if self._has("input"):
            if single:
                raise ValueError(f"--{single[0]} and --input exclude each other")
            if not self._has("output"):
                raise ValueError("--input needs --output, the file for the rewritten rows")
        elif self._has("output"):
            raise ValueError("--output needs --input, the file with the rows to rewrite")
        elif not self._has("query") or not self._has("response"):
            raise ValueError("give --query and --response, or --input and --output")
        elif self._has("instruction") == self._has("target"):
            raise ValueError("give either --instruction or --target, and not both")
        if self.temperature < 0:
            raise ValueError(f"--temperature must be at least 0, got {self.temperature}")
        _check_batch_size(self.batch_size)

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """Read the values of the responses in a file."""

    model: Path
    """System folder, or the folder of a detector."""
    input: Path
    """JSON lines with "query" and "response"."""
    output: Path
    """Where the same rows go, with "values"; bad rows go to NAME.rejected.jsonl."""
    batch_size: int = 64
    """Rows read at once."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""

    def __post_init__(self) -> None:
        _check_batch_size(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class EvaluateDetectorOptions:
    """Score a detector: macro-F1 of categories, sign accuracy, cosine, the all-ones baseline."""

    model: Path
    """System folder, or the folder of a detector."""
    data: tuple[str, ...]
    """What to score on, one or more of fulcra:PATH, valueeval23:ARGUMENTS.tsv,LABELS.tsv,
    jsonl:PATH and embedded[:ROWS[,SEED]]."""
    batch_size: int = 64
    """Rows scored at once."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: give at least one kind of data")
        _check_batch_size(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class EvaluateRewriterOptions:
    """Score a system's rewriter beside the copy baseline: consistency, distance, joint success."""

    model: Path
    """System folder, such as the one that `visa quickstart --out` wrote."""
    data: tuple[str, ...]
    """What to rewrite, one or more of jsonl:PATH, embedded[:ROWS[,SEED]], fulcra:PATH."""
    n: int | None = None
    """Only the first N records."""
    temperature: float = 0.7
    """Sampling temperature."""
    greedy: bool = False
    """Score greedy rewrites too."""
    vanilla: Path | None = None
    """Folder of the rewriter before training, scored beside it."""
    targets: Literal["predicted", "recorded"] = "predicted"
    """predicted: what detector and translator make of the instruction, as for a user. recorded:
    what the records say."""
    out: Path | None = None
    """Folder for report.md, report.json and pictures."""
    seed: int = 0
    """Seed of sampling."""
    batch_size: int = 64
    """Rows rewritten at once."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: give at least one kind of data")
        if self.n is not None and self.n < 1:
            raise ValueError(f"--n must be at least 1, got {self.n}")
        if self.temperature < 0:
            raise ValueError(f"--temperature must be at least 0, got {self.temperature}")
        _check_batch_size(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Say what is active on this machine, and what to do about what is not."""

    vllm: Path | None = None
    """Folder of a causal LM: prove on it that vLLM shares the trained weights, before and after
    real updates."""
    json: bool = False
    """Print JSON."""


def _check_batch_size(number: int) -> None:
    if number < 1:
        raise ValueError(f"--batch-size must be at least 1, got {number}")
