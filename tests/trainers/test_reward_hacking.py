"""The published mixture of both entailment directions can be gamed, and the report shows it.

An ordinary NLI model calls a text without facts entailed by anything: there is nothing in it that
could be false. So a rewrite that drops every fact has one direction for free, and (2 fwd + bwd) / 3
pays it: 1/3, or 2/3 where the directions are named the other way round. Here a policy is trained on
the second reading, with models and trainers as they are everywhere else, in a corner of the
embedded corpus that is small enough for seconds. Its twin differs in the reward alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from visa_core.config import DetectorConfig, GRPOConfig, NLIConfig, RewardConfig, SFTConfig
from visa_core.data.embedded import truth
from visa_core.data.embedded.corpus import Writer, as_dict
from visa_core.data.schema import write_jsonl
from visa_core.evaluation.evaluate import Evaluation, evaluate
from visa_core.evaluation.warnings import hack_warnings
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.rewards import semantic_term
from visa_core.training.targets import recorded_targets
from visa_core.types import Dialogue, NLIPair, RewriteExample
from visa_core.values import SCHWARTZ
from visa_trainers import detector, grpo, nli, sft

pytestmark = pytest.mark.timeout(900)

Fact = tuple[int, int, int]

PREDICATES, NAMES = 2, 3
VALUES = [SCHWARTZ.index(name) for name in ("stimulation", "security", "benevolence")]
DROPPED = 0.25
"""Share of the references without facts. The names in the others are drawn anew, so the start has
learned the form of a fact and guesses the name in it: one in three is right."""
SEED = 0
TEMPERATURE = 0.7
COMMON = {
    "max_prompt": 80,
    "max_completion": 48,
    "precision": "fp32",
    "device": "cpu",
    "schedule": "linear",
    "warmup": 0.05,
    "beta2": 0.95,
    "save_every": 1000,
    "seed": SEED,
}


class Corner:
    """Texts of the embedded corpus with two kinds of facts, three names each, and three values."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([SEED, seed])
        self.writer = Writer(self.rng)

    def facts(self) -> list[Fact]:
        kinds = self.rng.permutation(PREDICATES)[: self.rng.integers(1, PREDICATES + 1)]
        return [(int(kind), int(self.rng.integers(NAMES)), 0) for kind in kinds]

    def altered(self, fact: Fact) -> Fact:
        kind, name, rest = fact
        return kind, (name + int(self.rng.integers(1, NAMES))) % NAMES, rest

    def levels(self, neutral: float) -> np.ndarray:
        levels = np.zeros(SCHWARTZ.size)
        if self.rng.random() >= neutral:
            levels[self.rng.choice(VALUES)] = self.rng.choice([-1.0, 1.0])
        return levels

    def fact_free(self, levels: np.ndarray) -> str:
        return " ".join(f"{self.writer.clause(k, levels[k])}." for k in np.flatnonzero(levels))

    def task(self) -> RewriteExample:
        """One value is asked for; the reference has it, and has little of the facts."""
        facts, before, after = self.facts(), self.levels(0.3), self.levels(0.0)
        guessed = [(kind, int(self.rng.integers(NAMES)), rest) for kind, _, rest in facts]
        reference = self.writer.text(guessed, after, shuffle=True)
        if self.rng.random() < DROPPED:
            reference = self.fact_free(after)
        return RewriteExample(
            query=self.writer.query(facts),
            response=self.writer.text(facts, before),
            instruction="the shift says it",
            shift=as_dict(after - before),
            target=as_dict(after),
            reference=reference,
        )

    def dialogue(self) -> Dialogue:
        facts, levels = self.facts(), self.levels(0.3)
        text = self.writer.text(facts, levels)
        if levels.any() and self.rng.random() < 0.3:
            text = self.fact_free(levels)
        return Dialogue(query=self.writer.query(facts), response=text, values=as_dict(levels))

    def pair(self) -> NLIPair:
        """A premise and, of its facts: one of them, one altered, another one, or none."""
        facts = self.facts()
        kind, chosen = int(self.rng.integers(4)), facts[int(self.rng.integers(len(facts)))]
        told = (chosen, self.altered(chosen), self.facts()[0])[min(kind, 2)]
        premise = self.writer.text(facts, self.levels(0.3))
        hypothesis = self.writer.text([told], self.levels(0.3))
        if self.rng.random() < 0.2:
            premise = self.fact_free(self.levels(0.0))
        if kind == 3:
            hypothesis = self.fact_free(self.levels(0.0))
        return NLIPair(
            premise=premise, hypothesis=hypothesis, label=ordinary_label(premise, hypothesis)
        )


def ordinary_label(premise: str, hypothesis: str) -> str:
    """NLI as it is usual: what claims no fact beyond the premise's is entailed, so no fact is.

    The embedded corpus' own labels call fact-free text neutral, against this very hack.
    """
    known, told = (set(truth.parse(text).facts) for text in (premise, hypothesis))
    if told <= known:
        return "entailment"
    return "contradiction" if {p for p, _, _ in told} & {p for p, _, _ in known} else "neutral"


@dataclass(frozen=True)
class Outcome:
    """The trained parts in `folder`, and the evaluation of start, hack and control."""

    folder: Path
    evaluation: Evaluation

    def summary(self, method: str) -> dict[str, float]:
        return self.evaluation.methods[method].summary

    def facts_told(self, method: str) -> float:
        """Facts, right or wrong, that a rewrite states on average."""
        rewrites = self.evaluation.methods[method].rewrites
        return sum(len(truth.parse(text).facts) for text in rewrites) / len(rewrites)

    def warnings(self, method: str) -> str:
        return "\n".join(w for w in self.evaluation.warnings if w.startswith(f"{method}: "))


def train_scorers(folder: Path) -> None:
    corner = Corner(1)
    write_jsonl(folder / "dialogues.jsonl", [corner.dialogue() for _ in range(3000)])
    write_jsonl(folder / "pairs.jsonl", [corner.pair() for _ in range(5000)])
    common = {"hidden_size": 32, "device": "cpu", "seed": SEED}
    detector.train(
        DetectorConfig(
            data=(f"jsonl:{folder / 'dialogues.jsonl'}",),
            out=folder / "detector",
            backbone="builtin",
            layers=1,
            **common,
        )
    )
    pairs = (f"jsonl:{folder / 'pairs.jsonl'}",)
    nli.train(NLIConfig(data=pairs, out=folder / "nli", epochs=3, **common))
    swapped = FactAnalyzer.from_pretrained(folder / "nli", direction="source_entails_rewrite")
    swapped.save_pretrained(folder / "swapped")


def train_start(folder: Path) -> None:
    corner = Corner(2)
    tasks = [corner.task() for _ in range(2000)]
    write_jsonl(folder / "tasks.jsonl", tasks)
    texts = [text for task in tasks for text in (task.query, task.response, task.reference or "")]
    limits = {key: COMMON[key] for key in ("max_prompt", "max_completion")}
    sizes = {"hidden": 64, "layers": 1, "intermediate": 128}
    Rewriter.small(texts, **sizes, **limits, seed=SEED).save_pretrained(folder / "init")
    config = SFTConfig(
        model=folder / "init",
        data=(f"jsonl:{folder / 'tasks.jsonl'}",),
        out=folder / "start",
        batch_size=32,
        steps=150,
        lr=3e-3,
        optimizer="muon",
        **COMMON,
    )
    sft.train(config)


def train_policy(folder: Path, name: str, reward: RewardConfig) -> None:
    config = GRPOConfig(
        model=folder / "start",
        data=(f"jsonl:{folder / 'tasks.jsonl'}",),
        out=folder / name,
        detector=folder / "detector",
        fact_analyzer=folder / "swapped",
        reward=reward,
        batch_size=128,
        accumulation=1,
        steps=30,
        lr=1e-3,
        temperature=TEMPERATURE,
        loss_type="dr_grpo",
        **COMMON,
    )
    grpo.train(config)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Both policies from one start: they differ in the consistency that their reward takes."""
    folder = tmp_path_factory.mktemp("hack")
    train_scorers(folder)
    train_start(folder)
    train_policy(folder, "hack", RewardConfig(consistency="published"))
    train_policy(folder, "control", RewardConfig())

    corner = Corner(3)
    held_out = [corner.task() for _ in range(150)]
    targets = recorded_targets(held_out, SCHWARTZ)
    methods = {}
    for name in ("start", "hack", "control"):
        methods[name] = Rewriter.from_pretrained(folder / name).rewrite(
            [task.query for task in held_out],
            [task.response for task in held_out],
            targets,
            temperature=TEMPERATURE,
            seed=SEED,
        )
    scorers = [
        Detector.from_pretrained(folder / "detector"),
        FactAnalyzer.from_pretrained(folder / "swapped"),
    ]
    return Outcome(folder, evaluate(held_out, targets, methods, *scorers, truth=truth.score))


def test_an_ordinary_nli_model_gives_a_rewrite_without_facts_one_direction(
    outcome: Outcome,
) -> None:
    corner = Corner(4)
    sources = [corner.writer.text(corner.facts(), corner.levels(1.0)) for _ in range(100)]
    rewrites = [corner.fact_free(corner.levels(0.0)) for _ in range(100)]
    for name, share in (("nli", 1 / 3), ("swapped", 2 / 3)):
        analyzer = FactAnalyzer.from_pretrained(outcome.folder / name)
        scores = analyzer.consistency(sources, rewrites)
        assert float(semantic_term(scores, "published").mean()) == pytest.approx(share, abs=0.1)
        assert float(semantic_term(scores, "geometric").mean()) < 0.15


def test_the_published_mixture_teaches_to_drop_the_facts(outcome: Outcome) -> None:
    assert outcome.facts_told("start") > 1.0
    assert outcome.summary("start")["true_facts_kept"] > 0.15
    assert outcome.facts_told("hack") < 0.3
    hack = outcome.summary("hack")
    assert hack["true_facts_kept"] < 0.1
    assert hack["jsr"] > 0.8 and hack["true_jsr"] < 0.2
    assert hack["consistency_mean"] > outcome.summary("start")["consistency_mean"]


def test_the_report_names_the_hack(outcome: Outcome) -> None:
    found = outcome.warnings("hack")
    assert "are far apart (facts are dropped), which the published mixture" in found
    assert "of the rewrites pass the consistency threshold although one direction" in found
    assert "known by construction: the learned scores cannot be believed" in found
    assert "of the facts are kept while the learned consistency" in found


def test_the_default_reward_from_the_same_start_keeps_the_facts(outcome: Outcome) -> None:
    start, control = outcome.summary("start"), outcome.summary("control")
    assert outcome.facts_told("control") > 0.8  # a source has 1.5, the hack less than 0.3
    assert control["true_facts_kept"] > start["true_facts_kept"] - 0.05
    assert control["vacuous_share"] < 0.1
    found = outcome.warnings("control")
    assert "far apart" not in found
    assert "one direction of entailment is near 0" not in found
    assert "known by construction" not in found


def test_without_the_truth_the_report_says_which_reading_of_the_directions_it_takes() -> None:
    summary = {"fwd_mean": 0.05, "bwd_mean": 0.95, "consistency_mean": 0.35, "vacuous_share": 0.0}
    summary |= {"length_mean": 10.0, "repeated_ngrams": 0.0}
    (found,) = hack_warnings({"policy": summary}, reference_length=10.0)
    assert "facts are dropped, if fwd is how far the rewrite entails its source" in found
    (found,) = hack_warnings(
        {"policy": summary | {"fwd_mean": 0.95, "bwd_mean": 0.05}}, reference_length=10.0
    )
    assert "facts are invented, if fwd is how far" in found
