"""Settings of the adaptive value search's outer loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from visa_core.config.values import ProtocolConfig
from visa_core.endpoints.config import ChatConfig

StrategyName = Literal["gaussian", "cma", "random"]


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """How samples that did better than their group move the Gaussian over value vectors.

    The paper names the rule's parts, not its equations: this is a reconstruction of them.
    """

    mean_rate: float = 0.7
    """Share of the way that the mean goes to the weighted mean of the better samples."""
    variance_rate: float = 0.3
    """Share of the way that the variance goes to the better samples' spread."""
    annealing: float = 0.97
    """Factor of the variance each iteration, on top of the rule."""
    floor: float = 0.02
    """Smallest standard deviation of a value."""

    def __post_init__(self) -> None:
        for name in ("mean_rate", "variance_rate", "annealing"):
            number = getattr(self, name)
            if not 0 < number <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be in (0, 1], got {number}")
        if not 0 <= self.floor < math.inf:
            raise ValueError(f"--floor must be at least 0, got {self.floor}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The outer loop: how many candidates, how often, where it begins."""

    strategy: StrategyName = "gaussian"
    """gaussian: the paper's rule, as far as it is known. cma: CMA-ES of the package cmaes. random:
    points drawn evenly, the best one kept."""
    candidates: int = 8
    """Value vectors of an iteration (K)."""
    iterations: int = 10
    """Iterations of the outer loop."""
    sigma: float = 0.3
    """Standard deviation of each value at the start."""
    bound: float = 1.0
    """Values stay between -bound and +bound."""
    rule: Annotated[RuleConfig, arg(name="")] = RuleConfig()
    """How the Gaussian moves."""
    seed: int = 0
    """Seed of the candidates."""

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(
                f"--candidates must be at least 2, got {self.candidates}: a candidate's advantage "
                "is measured against the others of its iteration"
            )
        if self.iterations < 1:
            raise ValueError(f"--iterations must be at least 1, got {self.iterations}")
        for name in ("sigma", "bound"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """The mock update: a short training of adapters on the frozen base."""

    steps: int = 20
    """Optimizer steps."""
    batch_size: int = 16
    """Rows of a step, of every candidate."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it falls linearly to a tenth."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Names of the linear layers that get adapters."""
    max_grad_norm: float = 1.0
    """Gradients of each candidate are clipped to this norm."""
    token_budget: int = 16384
    """Most tokens of one pass, over all candidates."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """bf16: products in bfloat16 under autocast, adapters in float32."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "token_budget"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("lr", "alpha", "max_grad_norm"):
            number = getattr(self, name)
            if not 0 < number < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {number}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"--warmup must be in [0, 1), got {self.warmup}")
        if not self.targets:
            raise ValueError("--targets: name at least one kind of linear layer")


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Find the value target that pays best: fine-tune for a task, and drift less.

    A search over value vectors: the rewriter writes the task's training responses anew toward each
    candidate, the base model is updated on them for a moment, and is paid for what it can do less
    how far its values went.
    """

    out: Path = Path("visa-search")
    """Folder of the report, the rewrites' cache and the saved states; a stopped search goes on."""
    embedded: bool = False
    """Run the embedded scenario: sums whose worked answers lean toward power and achievement."""
    system: Path | None = None
    """Folder with a detector and a rewriter, such as `visa quickstart --out` wrote. Embedded
    searches train one in OUT/system where none is given."""
    base: Path | None = None
    """Folder of the model that is fine-tuned; embedded searches train their own."""
    task: str | None = None
    """What it is fine-tuned on: math500:FILE, or jsonl:FILE with "query" and "response"."""
    capability: str | None = None
    """What it must do well: mmlu:FOLDER, or math500:FILE (problems beyond the training ones)."""
    drift: Literal["profile", "judged"] = "profile"
    """profile: how far the detector's profile over probe questions moved, a fast proxy. judged: win
    rates against default answers, as `visa drift` has them."""
    probes: Path | None = None
    """Questions that read its profile, a line each; without it, those of `visa values`."""
    judge: ChatConfig = field(default_factory=ChatConfig)
    """The model that compares answers with default ones, for --drift judged. --judge.model embedded
    is a word count for dry runs, no judge."""
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    """How is asked and judged, for --drift judged; --protocol.seed has no effect here."""
    questions: Path | None = None
    """Another question set for --drift judged, as in `visa values`."""
    seeds: int = 3
    """Independent searches and final trainings, from `search.seed` on."""
    search: Annotated[SearchConfig, arg(name="")] = SearchConfig()
    """The outer loop."""
    update: Annotated[UpdateConfig, arg(name="")] = UpdateConfig()
    """The mock update of a candidate."""
    final_steps: int | None = None
    """Steps of the final trainings; without it, as many as a mock update's."""
    drift_weight: float = 1.0
    """Weight of value drift against capability in the reward."""
    train_rows: int = 128
    """Training examples of the task."""
    capability_rows: int = 128
    """Questions of the search's capability; the final table has others."""
    shots: int = 5
    """Worked examples before each MMLU question."""
    max_tokens: int = 256
    """Longest answer of a temporary model in tokens."""
    probe_rows: int = 64
    """Probe questions of a profile."""
    probe_samples: int = 1
    """Answers to each probe question."""
    temperature: float = 0.7
    """Of answers to probe questions; capability is greedy."""
    rewrite_temperature: float = 0.0
    """Of rewrites."""
    engine: Literal["hf", "vllm"] = "hf"
    """Engine of the rewriter."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the base's weights; auto: as they are stored."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    smoke: bool = False
    """Embedded: a run of seconds that only shows that every part works."""

    def __post_init__(self) -> None:
        if self.embedded:
            for name in ("base", "task", "capability", "probes"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--embedded brings its own --{name}: leave it out")
            if self.drift != "profile":
                raise ValueError("--embedded reads profiles: leave --drift out")
        else:
            for name in ("system", "base", "task", "capability"):
                if getattr(self, name) is None:
                    raise ValueError(f"give --{name}, or --embedded for the scenario without files")
        if (self.drift == "judged") != bool(self.judge.model):
            raise ValueError("--drift judged and --judge.model: give both or none")
        for name in (
            "seeds", "train_rows", "capability_rows", "max_tokens", "probe_rows", "probe_samples",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        if self.final_steps is not None and self.final_steps < 1:
            raise ValueError(f"--final-steps must be at least 1, got {self.final_steps}")
        if self.shots < 0:
            raise ValueError(f"--shots must be at least 0, got {self.shots}")
        if not 0 <= self.drift_weight < math.inf:
            raise ValueError(f"--drift-weight must be at least 0, got {self.drift_weight}")
        for name in ("temperature", "rewrite_temperature"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}"
                )
        if self.smoke and not self.embedded:
            raise ValueError("--smoke is a size of the embedded scenario: give --embedded too")


EMBEDDED_UPDATE = UpdateConfig(steps=24, batch_size=8, lr=1e-2)
"""Of the embedded scenario, whose base is small enough to learn fast. Long enough to rank targets
as a long training does: after 16 steps at half the rate, texts that are hard to learn had left the
base's values alone, and won.
"""

EMBEDDED_SIGMA = 0.2
"""At the start of the embedded scenario: its rewriter says two values or three, and with this about
two of ten are drawn beyond the quarter where a half step begins.
"""


def with_scenario(config: AdaptiveConfig) -> AdaptiveConfig:
    """The embedded scenario's own sizes where none are given."""
    if not config.embedded:
        return config
    update, steps, search = config.update, config.final_steps, config.search
    if update == UpdateConfig():
        update, steps = EMBEDDED_UPDATE, steps or 64
    if search.iterations == SearchConfig().iterations:
        search = replace(search, iterations=8)
    if search.sigma == SearchConfig().sigma:
        search = replace(search, sigma=EMBEDDED_SIGMA)
    if config.smoke:
        update, steps = replace(update, steps=2, batch_size=4), 2
        search = replace(search, iterations=2, candidates=2)
    return replace(config, update=update, final_steps=steps, search=search)
