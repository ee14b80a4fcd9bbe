"""Options of `visa bench methods`. Nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from visa_core.endpoints.config import ChatConfig

METHODS = ("vanilla=base", "sft=sft", "dpo=dpo", "simpo=simpo", "grpo=grpo")


@dataclass(frozen=True, kw_only=True)
class BenchTablesOptions:
    """Tables and figures made anew of the rows that `visa bench methods` left in a folder: nothing
    is sampled and no model is needed, so thresholds can be others.
    """

    out: Path
    """Folder of rows.jsonl (every rewrite, as it comes) and of tables and figures."""
    ours: str = "grpo"
    """The method that is tested against the best of the others."""
    l2_below: float = 0.8
    """Joint success needs a distance to the target below this ..."""
    consistency_above: float = 0.3
    """... and a published consistency above this."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class BenchMethodsOptions(BenchTablesOptions):
    """Methods beside each other over seeds and models: the paper's Tables 1 and 5 in shape, with
    intervals, paired tests, edit size and the copy baseline.
    """

    systems: tuple[Path, ...]
    """System folders, one a seed, such as those that `visa quickstart --baselines` wrote: each
    gives the scorers, the held-out prompts, and the folders that --methods names. Started again
    with the same --out, nothing is sampled twice, and what other runs put there (other models,
    other prompting styles) stands in the same tables."""
    methods: tuple[str, ...] = METHODS
    """NAME=FOLDER pairs: rewriters, inside every system folder or elsewhere. "none" for none."""
    model_name: str | None = None
    """What the trained model is called in the tables; without it its type and size."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """Chat model of the prompting baselines: an endpoint's or a local folder's."""
    prompting: tuple[str, ...] = ()
    """Prompting baselines of --chat: simple, rules, think, or files like theirs."""
    max_tokens: int = 2048
    """Longest reply of the chat model, reasoning included."""
    data: tuple[str, ...] = ()
    """What to rewrite, one or more of jsonl:PATH, embedded[:ROWS[,SEED]], fulcra:PATH; without it
    data/held_out.jsonl of every system."""
    n: int | None = None
    """Only the first N records."""
    targets: Literal["predicted", "recorded"] = "predicted"
    """predicted: what detector and translator make of the instruction, as for a user. recorded:
    what the records say."""
    temperature: float = 0.7
    """Sampling temperature; 0 is greedy."""
    seed: int = 0
    """Seed of sampling."""
    batch_size: int = 64
    """Prompts rewritten at once."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""

    def __post_init__(self) -> None:
        if not self.systems:
            raise ValueError("--systems: give at least one system folder")
        named_folders(self.methods)
        for name in ("batch_size", "max_tokens", "n"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature must be at least 0, got {self.temperature}")
        if self.prompting and not self.chat.model:
            raise ValueError(
                "--prompting needs --chat.model, with --chat.base-url for an endpoint's"
            )


def named_folders(methods: tuple[str, ...]) -> dict[str, str]:
    """Folder by method name. Raises ValueError for what is no NAME=FOLDER pair or named twice."""
    if methods == ("none",):
        return {}
    found: dict[str, str] = {}
    for text in methods:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise ValueError(f"--methods {text!r} is no NAME=FOLDER pair, such as grpo=grpo")
        if name in found or name == "copy":
            raise ValueError(f"--methods: {name!r} stands for something already")
        found[name] = folder
    return found
