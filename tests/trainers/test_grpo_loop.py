"""GRPO's loop around the update: prompts drawn again, scoring beside sampling, evaluation, the best
model, options of the sampler, references.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.trainers.test_grpo_faults import figures, settings
from visa_core.config.grpo_parts import HeldOutSettings, ResampleSettings
from visa_core.models import packed_encoder
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.rewards import RewardModel, RewardOutput
from visa_core.rollout.errors import RolloutError
from visa_core.rollout.hf import HFEngine
from visa_core.training import actor as actors
from visa_core.training.actor import Actor
from visa_core.training.experience import Experience
from visa_core.training.targets import predicted_targets
from visa_core.types import Consistency
from visa_trainers import grpo


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", n=24)


def paid(rewrites: list[str], worth: Any) -> RewardOutput:
    """Rewards that a test decides itself."""
    rows = torch.tensor([float(worth(row, text)) for row, text in enumerate(rewrites)])
    zeros = torch.zeros_like(rows)
    return RewardOutput(
        reward=rows,
        cosine=zeros,
        semantic=zeros,
        consistency=Consistency(fwd=zeros, bwd=zeros, mean=zeros),
        values=torch.zeros(len(rows), 10),
        l2=zeros,
        worst=zeros.bool(),
    )


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Experience]:
    """What each step trains on."""
    seen: list[Experience] = []
    informative = Actor.informative

    def keep(self: Actor, *args: Any) -> Any:
        found = informative(self, *args)
        seen.append(found[0])
        return found

    monkeypatch.setattr(Actor, "informative", keep)
    return seen


@pytest.mark.parametrize(("below", "tries"), [(0.0, 3), (1.0, 5), (0.5, 5), (1.0, 1)])
def test_groups_that_teach_nothing_are_drawn_again(
    small_system: Path,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    below: float,
    tries: int,
) -> None:
    """A prompt teaches where its number of tokens is even: the test's own rule, kept apart from
    the loop's bookkeeping.
    """

    def score(self: Any, queries: Any, sources: list[str], rewrites: list[str], *_: Any, **__: Any):
        return paid(rewrites, lambda row, _: row if len(sources[row]) % 2 == 0 else 1.0)

    monkeypatch.setattr(RewardModel, "score", score)
    seen, calls, collect = watched(monkeypatch), [], Actor.collect

    def counted(self: Actor, prompts: Any, seed: int, first: int, clock: Any) -> Experience:
        calls.append(len(prompts))
        return collect(self, prompts, seed, first, clock)

    monkeypatch.setattr(Actor, "collect", counted)
    config = settings(
        small_system,
        tasks,
        tmp_path / "out",
        steps=1,
        batch_size=32,
        group_size=4,
        resample=ResampleSettings(below=below, tries=tries),
    )
    grpo.train(config)
    (batch,) = seen
    teaches = [len(p.source) % 2 == 0 for p in batch.prompts]
    assert len(batch.prompts) == 8 and calls[0] == 8
    (row,) = figures(config.out)
    assert row["flat_groups"] == pytest.approx(1 - sum(teaches) / 8)
    assert row.get("drawn_again", 0) == sum(calls[1:])
    if below == 0:
        assert len(calls) == 1 and not all(teaches), "the rule must leave something to draw again"
    else:
        assert len(calls) > 1 and len(calls) - 1 <= tries
        assert sum(teaches) >= below * 8 or len(calls) - 1 == tries
    if tries == 5:
        assert sum(teaches) >= below * 8
    for group, prompt in enumerate(batch.prompts):
        own = [row for row, g in enumerate(batch.rollouts.group_ids.tolist()) if g == group]
        assert len(own) == 4
        spread = batch.rewards.reward[own].std()
        assert (spread > 0) == (len(prompt.source) % 2 == 0), "rewards went with their prompts"


def test_what_replaces_a_group_is_what_belongs_to_the_fresh_prompt(
    small_system: Path, tasks: Path, tmp_path: Path
) -> None:
    """Rows of a batch with a group exchanged, against plain lists."""
    from visa_core.rollout.sampling import SamplingConfig
    from visa_core.training.experience import replaced
    from visa_core.types import Prompt

    rewriter = Rewriter.from_pretrained(small_system / "rewriter")
    sampling = SamplingConfig(max_new_tokens=6)

    def sampled(texts: list[str], seed: int) -> Experience:
        prompts = [
            Prompt(
                ids=rewriter.tokenizer(t)["input_ids"], query=t, source=t, target=torch.zeros(10)
            )
            for t in texts
        ]
        found = rewriter.engine().generate([p.ids for p in prompts], 3, sampling, seed)
        rewrites = [f"{t} {i}" for t in texts for i in range(3)]
        rewards = paid(rewrites, lambda row, _: seed + row)
        return Experience(prompts=prompts, rollouts=found, rewrites=rewrites, rewards=rewards)

    old, new = sampled(["a train", "the van to Oslo", "boxes"], 10), sampled(["red", "blue"], 50)
    both = replaced(old, [2, 0], new)
    assert [p.query for p in both.prompts] == ["blue", "the van to Oslo", "red"]
    rows = new.rollouts.rows()[3:] + old.rollouts.rows()[3:6] + new.rollouts.rows()[:3]
    assert both.rollouts.rows() == rows
    assert both.rewards.reward.tolist() == [53, 54, 55, 13, 14, 15, 50, 51, 52]
    assert both.rewrites[0] == "blue 0" and both.rewrites[-1] == "red 2"
    assert both.rollouts.group_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    given = old.rollouts.logprobs.split(old.rollouts.lengths.tolist())
    kept = both.rollouts.logprobs.split(both.rollouts.lengths.tolist())
    assert all(a.equal(b) for a, b in zip(kept[3:6], given[3:6], strict=True))


def test_scoring_beside_sampling_changes_no_bit(
    small_system: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    score = RewardModel.score

    def where(self: Any, *args: Any, **options: Any) -> RewardOutput:
        threads.append(threading.current_thread().name)
        return score(self, *args, **options)

    monkeypatch.setattr(RewardModel, "score", where)
    common = {"batch_size": 16, "chunk": 1, "steps": 3, "reward": lenient()}
    for name, overlap in (("one", False), ("two", True)):
        threads.clear()
        grpo.train(settings(small_system, tasks, tmp_path / name, overlap=overlap, **common))
        assert len(threads) == 3 * 4
        assert (set(threads) == {"MainThread"}) == (not overlap)
    assert figures(tmp_path / "one") == figures(tmp_path / "two")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert models[0] == models[1]


def lenient() -> Any:
    """Rewards that tiny untrained models do not all share: cut rewrites are scored as they are."""
    from visa_core.config import RewardConfig

    return RewardConfig(unfinished="ignore")


def test_a_failure_in_the_second_thread_stops_the_run(
    small_system: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> RewardOutput:
        raise RolloutError("the scorer is gone")

    monkeypatch.setattr(RewardModel, "score", broken)
    with pytest.raises(RolloutError, match="the scorer is gone"):
        grpo.train(settings(small_system, tasks, tmp_path / "out", chunk=1, overlap=True))


def test_evaluation_on_held_out_records_against_the_parts_by_themselves(
    small_system: Path, tasks: Path, tmp_path: Path
) -> None:
    held = tiny.write_tasks(tmp_path / "held.jsonl", n=5, seed=9)
    options = HeldOutSettings(data=(f"jsonl:{held}",), every=2, prompts=4, keep_best=True)
    config = settings(small_system, tasks, tmp_path / "out", steps=3, held_out=options)
    grpo.train(config)
    rows = figures(config.out)
    assert [r["step"] for r in rows if "eval_joint" in r] == [1, 2], "each second step and the last"

    rewriter = Rewriter.from_pretrained(config.out)
    detector = Detector.from_pretrained(small_system / "detector")
    facts = FactAnalyzer.from_pretrained(small_system / "fact_analyzer")
    records = tiny.examples(5, 9)[:4]
    targets = predicted_targets(records, detector, None, rewriter.space)
    queries, sources = [r.query for r in records], [r.response for r in records]
    texts = rewriter.rewrite(queries, sources, targets)
    told = [i for i, text in enumerate(texts) if text.strip()]
    values = torch.zeros(4, 10)
    values[told] = detector.predict([queries[i] for i in told], [texts[i] for i in told])
    scores = facts.consistency(sources, texts)
    distance = (values - targets).norm(dim=1)
    joint = (distance < 0.8) & ((2 * scores.fwd + scores.bwd) / 3 > 0.3)
    last = rows[-1]
    assert last["eval_l2"] == pytest.approx(distance.mean().item(), abs=1e-5)
    assert last["eval_fwd"] == pytest.approx(scores.fwd.mean().item(), abs=1e-5)
    assert last["eval_joint"] == pytest.approx(joint.double().mean().item(), abs=1e-9)
    best = json.loads((config.out / "best" / "evaluation.json").read_text())
    evaluated = [r for r in rows if "eval_joint" in r]
    first_best = max(evaluated, key=lambda r: (r["eval_joint"], -r["step"]))
    assert best["step"] == first_best["step"]
    assert Rewriter.from_pretrained(config.out / "best").model.num_parameters() > 0


def test_the_best_model_is_that_of_its_step_and_survives_a_resume(
    small_system: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations worth 1, 3, 2, 0: the second is best, whatever stops the run after it."""
    from visa_core.training import held_out

    scores = iter([1.0, 3.0, 2.0, 0.0])
    states: list[bytes] = []
    measured = held_out.HeldOut._measured

    def scripted(self: Any) -> dict[str, float]:
        if len(states) == 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise RolloutError("stopped on purpose")
        found = measured(self) | {"eval_joint": next(scores)}
        weights = self.actor.rewriter.model.state_dict()
        states.append(weights["model.layers.0.mlp.up_proj.weight"].numpy().tobytes())
        return found

    monkeypatch.setattr(held_out.HeldOut, "_measured", scripted)
    options = HeldOutSettings(data=(f"jsonl:{tasks}",), every=1, prompts=2, keep_best=True)
    config = settings(
        small_system, tasks, tmp_path / "out", held_out=options, reward=lenient(), save_every=2
    )
    with pytest.raises(RolloutError, match="on purpose"):
        grpo.train(config)
    grpo.train(
        settings(
            small_system,
            tasks,
            tmp_path / "out",
            held_out=options,
            reward=lenient(),
            save_every=2,
            resume=True,
        )
    )
    assert len(set(states)) == 4, "each step moves the weights"
    best = Rewriter.from_pretrained(config.out / "best").model.state_dict()
    assert best["model.layers.0.mlp.up_proj.weight"].numpy().tobytes() == states[1]
    record = json.loads((config.out / "best" / "evaluation.json").read_text())
    assert record["step"] == 1 and record["eval_joint"] == 3.0


def test_options_of_the_sampler_reach_it(
    small_system: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    generate = HFEngine.generate

    def keep(self: Any, prompts: Any, n: int, sampling: Any, seed: int, **options: Any) -> Any:
        asked.append((sampling, options["stop_ids"]))
        return generate(self, prompts, n, sampling, seed, **options)

    monkeypatch.setattr(HFEngine, "generate", keep)
    rewriter = Rewriter.from_pretrained(small_system / "rewriter")
    word = next(t for t, i in rewriter.tokenizer.get_vocab().items() if i == 40)
    config = settings(
        small_system,
        tasks,
        tmp_path / "out",
        steps=1,
        top_k=5,
        top_p=0.9,
        min_p=0.05,
        temperature=0.8,
        stop_tokens=(word,),
    )
    grpo.train(config)
    sampling, stops = asked[0]
    assert (sampling.top_k, sampling.top_p, sampling.min_p, sampling.temperature) == (
        5,
        0.9,
        0.05,
        0.8,
    )
    assert stops == sorted({40, *rewriter.stop_ids})


def test_the_kl_can_pull_to_another_model(small_system: Path, tasks: Path, tmp_path: Path) -> None:
    moved = Rewriter.from_pretrained(small_system / "rewriter")
    with torch.no_grad():
        for weight in moved.model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    moved.save_pretrained(tmp_path / "other")
    common = {"kl_beta": 0.5, "steps": 1}
    grpo.train(settings(small_system, tasks, tmp_path / "own", **common))
    other = tmp_path / "other"
    grpo.train(settings(small_system, tasks, tmp_path / "far", reference=other, **common))
    assert figures(tmp_path / "own")[0]["ref_kl"] == pytest.approx(0, abs=1e-6)
    assert figures(tmp_path / "far")[0]["ref_kl"] > 1e-2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overlap": True}, "--overlap needs --chunk"),
        ({"chunk": -1}, "--chunk must be 0"),
        ({"min_p": 1.0}, "--min-p in"),
        ({"reference": Path("r")}, "--reference needs --kl-beta"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(Path("s"), Path("t"), Path("o"), **changes)


def test_parts_of_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="--held-out.keep-best needs --held-out.data"):
        HeldOutSettings(keep_best=True)
    with pytest.raises(ValueError, match="--resample.below must be in"):
        ResampleSettings(below=1.5)


def test_stop_tokens_must_be_tokens(small_system: Path) -> None:
    rewriter = Rewriter.from_pretrained(small_system / "rewriter")
    with pytest.raises(ValueError, match="'no such token' is no token of the model's vocabulary"):
        actors.stop_ids(rewriter, ["no such token"])


def test_a_run_whose_facts_are_read_in_bfloat16(
    small_system: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice to the same figures, near those of float32; each scorer was asked for it."""
    monkeypatch.setattr(packed_encoder, "why_no_bfloat16", lambda device: None)
    seen = []
    predict = FactAnalyzer.predict

    def watched(self: FactAnalyzer, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(self.two_readings is not None)
        return predict(self, *rest, **more)

    monkeypatch.setattr(FactAnalyzer, "predict", watched)
    rewards = {}
    for name, precision in (("a", "bfloat16"), ("b", "bfloat16"), ("c", "float32")):
        seen.clear()
        config = settings(small_system, tasks, tmp_path / name, steps=1, fact_precision=precision)
        grpo.train(config)
        assert seen and set(seen) == {precision == "bfloat16"}
        rewards[name] = figures(config.out)[0]["reward"]
    assert rewards["a"] == rewards["b"] == pytest.approx(rewards["c"], abs=0.01)
