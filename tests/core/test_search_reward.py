"""Candidates' answers and log-probabilities, rewards made of them, and the cache of rewrites."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.core.test_pairwise import small_set
from visa_core.config.values import ProtocolConfig
from visa_core.data.embedded import sums, truth
from visa_core.endpoints.chat import ChatRequest, EmbeddedChat
from visa_core.endpoints.local import LocalChat
from visa_core.evaluation.capability.mmlu import Item, Subject, evaluate_mmlu
from visa_core.evaluation.capability.scorer import AnswerScorer
from visa_core.evaluation.drift import Readings, drift, judged_readings
from visa_core.evaluation.journal import Journal
from visa_core.evaluation.pairwise.protocol import Asked, run_protocol
from visa_core.evaluation.pairwise.questions import QuestionSet, load_questions
from visa_core.evaluation.pairwise.scoring import score
from visa_core.models.detector import Detector
from visa_core.models.rewriter import Rewriter
from visa_core.search.adapters import CandidateAdapters
from visa_core.search.candidates import Base, Candidates
from visa_core.search.judged import JudgedDrift
from visa_core.search.reward import ExactAnswers, MultipleChoice, ProfileDrift, Reward
from visa_core.search.rewrites import CachedRewriter, Example, Rewrite, RewriteCache
from visa_core.training.checkpoint import CheckpointError

K = 3
WORDS = [f"What is {a} plus {b} ? A. B. C. D. {a + b} Answer:" for a in range(20) for b in range(9)]
PROTOCOL = ProtocolConfig(answers=1, temperature=0.0, max_tokens=8)
QUESTIONS = ["What is 3 plus 4 ?", "What is 12 plus 1 and then 5 plus 2 ?", "plus ?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lm") / "base"
    tiny.write_causal_lm(place, WORDS)
    return place


def candidates(folder: Path, packed: bool = True, only: int | None = None) -> Candidates:
    """K temporary models with random adapters, or one of them alone."""
    base = Base(Rewriter.from_pretrained(folder), packed=packed)
    assert base.packed == packed
    adapters = CandidateAdapters(base.model, K, rank=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for b in adapters.B:
            b.copy_(torch.randn(b.shape, generator=generator))
    if only is None:
        return Candidates(base, adapters)
    alone = CandidateAdapters(base.model, 1, rank=4)
    with torch.no_grad():
        for one, many in zip(alone.parameters(), adapters.parameters(), strict=True):
            one.copy_(many[only : only + 1])
    return Candidates(base, alone)


def merged(folder: Path, k: int) -> Rewriter:
    """The base with candidate k's adapter added into its weights, as an independent reference."""
    many = candidates(folder)
    opened = Rewriter.from_pretrained(folder)
    modules = dict(opened.model.named_modules())
    with torch.no_grad():
        for name, a, b in zip(many.adapters.linears, many.adapters.A, many.adapters.B, strict=True):
            modules[name].weight += many.adapters.scale * b[k] @ a[k]
    return opened


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_of_all_equal_those_of_each(folder: Path, temperature: float) -> None:
    options = {"max_tokens": 12, "temperature": temperature, "seed": 3, "batch_size": 2}
    together = candidates(folder).answers(QUESTIONS, **options)
    assert together == [
        candidates(folder, only=k).answers(QUESTIONS, **options)[0] for k in (0, 1, 2)
    ]
    assert len({tuple(own) for own in together}) == K


def test_greedy_answers_equal_transformers_own(folder: Path) -> None:
    together = candidates(folder).answers(QUESTIONS, max_tokens=10)
    for k in range(K):
        opened = merged(folder, k)
        base = Base(opened, packed=False)
        for question, answer in zip(QUESTIONS, together[k], strict=True):
            prompt = torch.tensor([base.prompt(question)])
            said = opened.model.generate(
                prompt, max_new_tokens=10, do_sample=False, eos_token_id=base.stop_ids
            )
            text = base.tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True)
            assert answer == text.strip()


@pytest.mark.parametrize("packed", [True, False])
def test_letters_equal_the_capability_scorers(folder: Path, packed: bool) -> None:
    """Every candidate's MMLU accuracy is that of a model with its adapter merged in."""
    items = tuple(
        Item(
            subject="s",
            question=f"What is {i} plus 3 ?",
            choices=("1", "2", "3", str(i)),
            answer=i % 4,
        )
        for i in range(12)
    )
    subjects = [Subject(name="s", examples=items[:2], items=items[2:])]
    many = candidates(folder, packed)
    got = MultipleChoice(subjects, token_budget=200)(many)
    expected = []
    for k in range(K):
        opened = merged(folder, k)
        scorer = AnswerScorer(opened.model, packed=False)
        expected.append(evaluate_mmlu(scorer, opened.tokenizer, subjects)["accuracy"]["mean"])
    assert got == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_reward_is_capability_less_weighted_drift(folder: Path) -> None:
    """Drift by hand from the detector's reading of the same answers."""
    many = candidates(folder)
    detector = Detector.create("builtin", texts=WORDS, max_length=64, hidden_size=16, layers=1)
    read = ProfileDrift(detector, QUESTIONS, max_tokens=6, seed=2)
    plain = CandidateAdapters(many.base.model, 1)
    reference = read.set_reference(Candidates(many.base, plain))
    able = ExactAnswers(QUESTIONS, [3, 8, 1], lambda n, text: len(text) > n, max_tokens=6)
    records = Reward(able, read, 2.5)(many)
    texts = many.answers(QUESTIONS, max_tokens=6, temperature=0.7, seed=2)
    greedy = many.answers(QUESTIONS, max_tokens=6)
    for k, record in enumerate(records):
        profile = detector.predict(QUESTIONS, texts[k]).mean(0)
        expected = float((profile - reference).abs().mean())
        assert record["drift"] == pytest.approx(expected, abs=1e-6)
        assert record["profile"] == pytest.approx(profile.tolist(), abs=1e-6)
        share = sum(len(t) > n for t, n in zip(greedy[k], (3, 8, 1), strict=True)) / 3
        assert record["capability"] == pytest.approx(share)
        assert record["reward"] == pytest.approx(share - 2.5 * expected, abs=1e-5)
    assert read(Candidates(many.base, plain))[0] == [0.0]


def judged_alone(opened: Rewriter, judge: Asked, asked: QuestionSet, out: Path) -> Readings:
    """Win rates of one model as `visa drift` reads them."""
    tested = Asked(chat=LocalChat(opened, opened.engine(), "one"), identity=str(out))
    with Journal(out / "a.jsonl") as answers, Journal(out / "v.jsonl") as verdicts:
        outcome = run_protocol(tested, judge, asked, PROTOCOL, answers, verdicts)
    return judged_readings(score(outcome, asked))


def test_judged_drift_is_visa_drifts_of_merged_models(folder: Path, tmp_path: Path) -> None:
    """Greedy, by a judge without sense that still tells any two texts apart."""

    def by_checksum(request: ChatRequest) -> str:
        first, second = request.messages[-1]["content"].split("Response 1:")[1].split("Response 2:")
        first, second = (zlib.crc32(part.strip()[:20].encode()) for part in (first, second))
        return "1" if first < second else "2"

    judge = Asked(chat=EmbeddedChat(by_checksum), identity="checksum")
    asked = load_questions(small_set(tmp_path, 9))
    many = candidates(folder)
    ours = JudgedDrift(judge, asked, PROTOCOL, tmp_path / "ours")
    ours.set_reference(Candidates(many.base, CandidateAdapters(many.base.model, 1)))
    drifts, _ = ours(many)
    base = judged_alone(Rewriter.from_pretrained(folder), judge, asked, tmp_path / "base")
    for k in range(K):
        tuned = judged_alone(merged(folder, k), judge, asked, tmp_path / str(k))
        assert drifts[k] == pytest.approx(drift(base, tuned)["drift"])
    assert max(drifts) > 0 and len(set(drifts)) > 1
    calls = judge.chat.account.calls
    assert ours(many)[0] == drifts and judge.chat.account.calls == calls


def test_texts_that_the_base_cannot_hold_are_told(small_system: Path) -> None:
    """A tokenizer of other words than the rewriter's: [UNK] would train the base on nothing."""
    from visa_core.models.word_tokenizer import build_word_tokenizer

    opened = Rewriter.from_pretrained(small_system / "rewriter")
    opened.tokenizer = build_word_tokenizer(["hello world"], min_count=1)
    opened.tokenizer.eos_token = "[SEP]"
    with pytest.raises(ValueError, match="base model's tokenizer has no tokens for '多'"):
        Base(opened, packed=False).completion("多")


def test_too_long_answers_and_prompts_are_told(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"5000 of answer are more than the 4096 .*--max-tokens"):
        candidates(folder).answers(QUESTIONS, max_tokens=5000)


class Counting:
    """An engine that counts the prompts it is given."""

    def __init__(self, engine) -> None:
        self.engine, self.prompts = engine, 0

    def generate(self, prompts, *rest, **more):
        self.prompts += len(prompts)
        return self.engine.generate(prompts, *rest, **more)


def test_rewrites_are_made_once(small_system: Path, tmp_path: Path) -> None:
    rewriter = Rewriter.from_pretrained(small_system / "rewriter")
    engine = Counting(rewriter.engine())
    examples = [Example(e.query, e.response) for e in tiny.examples(5)]
    targets = np.zeros((3, 10))
    targets[1, 2], targets[2, 2] = 0.5, 0.6  # the rewriter reads half steps: one target
    cached = CachedRewriter(rewriter, "one", RewriteCache(tmp_path / "c.sqlite"), engine=engine)
    first = cached.rewrite(examples, targets)
    assert engine.prompts == 10 and first[1] == first[2]
    expected = rewriter.rewrite(
        [e.query for e in examples], [e.response for e in examples], torch.zeros(5, 10)
    )
    assert [r.text for r in first[0]] == expected
    again = CachedRewriter(rewriter, "one", RewriteCache(tmp_path / "c.sqlite"), engine=engine)
    assert again.rewrite(examples, targets) == first and engine.prompts == 10
    other = CachedRewriter(rewriter, "two", RewriteCache(tmp_path / "c.sqlite"), engine=engine)
    other.rewrite(examples, targets[:1])
    assert engine.prompts == 15


@pytest.mark.parametrize("kind", ["under_a_file", "damaged"])
def test_a_cache_that_cannot_be_opened_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.sqlite"
    path.write_text("no database " * 100)
    if kind == "under_a_file":
        path = path / "c.sqlite"
    with pytest.raises(CheckpointError, match=r"cannot open the cache of rewrites .*--out"):
        RewriteCache(path)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    cache = RewriteCache(tmp_path / "c.sqlite")
    cache.db.execute("PRAGMA query_only = ON")  # as on a file system that is read-only
    with pytest.raises(CheckpointError, match="cannot write the cache of rewrites"):
        cache.put({"a": Rewrite("text", True)})


def test_sums_say_what_is_right() -> None:
    for asked in sums.sums(60, 3, sums.BIAS):
        assert sums.right_share(asked.facts, asked.response) == 1
        wrong = [(p, a, (b + 1) % 16) for p, a, b in asked.facts]
        assert sums.right_share(tuple(wrong), asked.response) == 0
        doubled = f"{asked.response} The train to Oslo leaves from platform 1."
        assert sums.right_share(asked.facts, doubled) < 1 or 1 not in {p for p, _, _ in asked.facts}
        for p, a, b in asked.facts:
            words = asked.query.split()
            at = words.index(sums.PREDICATES[p].a[a])
            x, y = (sums.SUMMANDS.index(words[at + i]) + 2 for i in (1, 3))
            assert int(sums.PREDICATES[p].b[b][-2:]) % 20 == (x + y) % 20


def test_leanings_are_as_said() -> None:
    def mean(texts: list[str]) -> torch.Tensor:
        return torch.stack([truth.values(text) for text in texts]).mean(0)

    lean = mean([s.response for s in sums.sums(2000, 4, sums.BIAS)])
    for name, (level, chance) in sums.BIAS.items():
        at = sums.SCHWARTZ.index(name)
        assert float(lean[at]) == pytest.approx(level * chance, abs=0.04)
    assert float(lean.abs().sum()) == pytest.approx(1.7, abs=0.1)
    own = mean([talk.response for talk in sums.talks(2000, 4)])
    for name, (level, chance) in sums.CHARACTER.items():
        at = sums.SCHWARTZ.index(name)
        assert float(own[at]) == pytest.approx(0.85 * level * chance, abs=0.05)
