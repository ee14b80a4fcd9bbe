"""The pairwise protocol: verdicts, win rates, position bias, restarts, a real endpoint."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from tests.http_server import ChatServer, Fault
from tests.tiny import texts, write_causal_lm
from visa_core.cli import main
from visa_core.config.values import ProtocolConfig
from visa_core.endpoints import ChatReply, ChatRequest, EmbeddedChat
from visa_core.evaluation.intervals import share, wilson
from visa_core.evaluation.journal import Journal
from visa_core.evaluation.pairwise.protocol import Asked, Outcome, parse_verdict, run_protocol
from visa_core.evaluation.pairwise.questions import QUESTIONS, JudgePrompt, load_questions
from visa_core.evaluation.pairwise.scoring import score
from visa_core.training.checkpoint import CheckpointError


def answerer(request: ChatRequest) -> str:
    """Answers numbered 0 to 14 of twenty hold the word that the honest judge looks for."""
    number = int(request.tag.rsplit(".", 1)[1])
    return f"{'STRONG' if number < 15 else 'weak'} answer {number}"


def responses(request: ChatRequest) -> tuple[str, str]:
    text = request.messages[-1]["content"]
    first, second = text.split("Response 1:\n")[1].split("\n\nResponse 2:\n")
    return first, second.split("\n\nWhich response")[0]


def honest(request: ChatRequest) -> str:
    first, second = responses(request)
    if "STRONG" in first + second:
        return f"Reasons.\n{1 if 'STRONG' in first else 2}"
    return f"Reasons.\n{2 if 'weak' in first else 1}"


def measured(
    folder: Path, judge: object, config: ProtocolConfig, tested: object = answerer
) -> tuple[dict, Outcome, EmbeddedChat, EmbeddedChat]:
    questions = load_questions()
    chats = EmbeddedChat(tested), EmbeddedChat(judge)
    asked = [Asked(chat=chat, identity=str(i)) for i, chat in enumerate(chats)]
    with Journal(folder / "answers.jsonl") as a, Journal(folder / "verdicts.jsonl") as v:
        outcome = run_protocol(*asked, questions, config, a, v)
    return score(outcome, questions), outcome, *chats


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (381, 668), (1, 20), (7, 15)])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_wilson_is_scipys(wins: int, n: int, level: float) -> None:
    expected = binomtest(wins, n).proportion_ci(level, method="wilson")
    assert wilson(wins / n, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_interval_without_observations() -> None:
    assert share([]) == {"mean": None, "interval": None, "n": 0}
    with pytest.raises(ValueError, match="at least one observation"):
        wilson(0.5, 0)


def test_the_question_set_is_ours_and_complete() -> None:
    questions = load_questions()
    assert Counter(q.dimension for q in questions.questions) == {
        d.name: 15 for d in questions.dimensions
    }
    assert len(questions.dimensions) == 4
    assert len({q.question for q in questions.questions}) == 60
    assert all(len(q.default_answer) > 80 for q in questions.questions)
    assert "cannot be compared with published" in questions.about


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Because. 1", 1),
        ("Response 1 is close, but:\n2", 2),
        ("**2**.", 2),
        ("<think>It is 1</think> Verdict: 2", 2),
        ("Both are alike.", None),
        ("Response 1 is better in 12", None),
        ("1 of 3", None),
        ("", None),
    ],
)
def test_the_last_number_is_the_verdict(text: str, said: int | None) -> None:
    assert parse_verdict(ChatReply(text=text, finish="stop")) == said


def test_a_verdict_that_was_cut_is_none() -> None:
    assert parse_verdict(ChatReply(text="Response 1", finish="length")) is None


def test_win_rates_of_an_honest_judge(tmp_path: Path) -> None:
    """15 of 20 answers win in both orders: 0.75 everywhere, without any bias."""
    record, outcome, *_ = measured(tmp_path, honest, ProtocolConfig())
    assert outcome.answers == 1200 and len(outcome.verdicts) == 2400
    for dimension in record["dimensions"].values():
        assert dimension["mean"] == pytest.approx(0.75)
        assert (dimension["n"], dimension["answers"]) == (15, 300)
        low, high = dimension["interval"]
        assert low < 0.75 < high
    question = record["questions"]["gender_roles_01"]
    expected = binomtest(15, 20).proportion_ci(method="wilson")
    assert question["interval"] == pytest.approx([expected.low, expected.high])
    bias = record["position_bias"]
    assert bias["first_chosen"]["mean"] == 0.5
    assert bias["changed"]["mean"] == 0.0
    assert bias["bias"] == pytest.approx(0.0)


def test_a_judge_that_likes_the_first_place_is_seen(tmp_path: Path) -> None:
    """It says 1 to all: half of everything with the swap; everything as published."""
    record, *_ = measured(tmp_path / "swap", lambda _: "1", ProtocolConfig(answers=2))
    assert {d["mean"] for d in record["dimensions"].values()} == {0.5}
    bias = record["position_bias"]
    assert (bias["first_chosen"]["mean"], bias["changed"]["mean"]) == (1.0, 1.0)
    assert (bias["always_first"], bias["always_second"], bias["pairs"]) == (120, 0, 120)
    assert bias["bias"] == 0.5
    published = ProtocolConfig(answers=2, order="tested_first")
    record, outcome, *_ = measured(tmp_path / "published", lambda _: "1", published)
    assert {d["mean"] for d in record["dimensions"].values()} == {1.0}
    assert record["position_bias"]["pairs"] == 0
    assert len(outcome.verdicts) == 120


def test_requests_are_the_published_ones(tmp_path: Path) -> None:
    seen: dict[str, list[ChatRequest]] = {"tested": [], "judge": []}

    def keep(who: str, text: str):
        return lambda request: seen[who].append(request) or text

    measured(tmp_path, keep("judge", "2"), ProtocolConfig(), keep("tested", "{high} says who?"))
    assert {r.temperature for r in seen["tested"]} == {0.2}
    assert {r.temperature for r in seen["judge"]} == {0.1}
    questions = {q.question for q in load_questions().questions}
    assert Counter(r.messages[-1]["content"] for r in seen["tested"]) == dict.fromkeys(
        questions, 20
    )
    assert len({(r.messages[-1]["content"], r.seed) for r in seen["tested"]}) == 1200
    firsts = Counter(responses(r)[0] == "{high} says who?" for r in seen["judge"])
    assert firsts == {True: 1200, False: 1200}


def test_unparsable_and_empty_are_counted(tmp_path: Path) -> None:
    def tested(request: ChatRequest) -> str:
        return " " if request.tag.endswith(".1") else answerer(request)

    def judge(request: ChatRequest) -> str:
        return "I cannot say." if "gender_roles_01" in request.tag else honest(request)

    record, *_ = measured(tmp_path, judge, ProtocolConfig(answers=2), tested)
    assert record["counts"]["empty_answers"] == 60
    assert record["counts"]["verdicts"] == 120
    assert record["counts"]["unparsable_verdicts"] == 2
    assert record["questions"]["gender_roles_01"]["mean"] is None
    assert record["dimensions"]["gender_roles"]["n"] == 14
    assert record["dimensions"]["gender_roles"]["questions_without_verdict"] == 1


def test_a_restart_asks_nothing_twice(tmp_path: Path) -> None:
    """Stopped in the middle of the answers, then of the verdicts, then whole."""
    config = ProtocolConfig(answers=3)
    asked: Counter[str] = Counter()

    def stopping(answer, after: int):
        def stopped(request: ChatRequest) -> str:
            if sum(asked.values()) >= after:
                raise KeyboardInterrupt
            asked[request.tag] += 1
            return answer(request)

        return stopped

    for after in (70, 300):
        with pytest.raises(KeyboardInterrupt):
            measured(tmp_path, stopping(honest, after), config, stopping(answerer, after))
    with (tmp_path / "verdicts.jsonl").open("a") as file:
        file.write('{"key": "cut sho')
    record, *_ = measured(tmp_path, stopping(honest, 10**6), config, stopping(answerer, 10**6))
    assert set(asked.values()) == {1} and len(asked) == 180 + 360
    other, *_ = measured(tmp_path / "whole", honest, config)
    assert record == other
    again, _, tested, judge = measured(tmp_path, honest, config)
    assert again == record and tested.account.calls == judge.account.calls == 0


def test_over_http_with_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both models behind a real server that fails now and then: complete, each answer once."""
    path = small_set(tmp_path, 6)

    def answer(body: dict) -> str:
        text = body["messages"][-1]["content"]
        if body["model"] == "tested":
            return f"STRONG {text[:20]}"
        return "1" if "Response 1:\nSTRONG" in text else "2"

    faults = [Fault("429", retry_after=0.01), Fault("500"), Fault("cut"), Fault("not_json")]
    with ChatServer(answer=answer, faults=faults) as server:
        flags = ["--questions", str(path), "--answers", "2", "--out", str(tmp_path / "out")]
        for who in ("tested", "judge"):
            flags += [f"--{who}.model", who, f"--{who}.base-url", server.url]
            flags += [f"--{who}.backoff", "0.01"]
        assert main(["values", *flags, "--json"]) == 0
        first = len(server.requests)
        assert main(["values", *flags]) == 0
        assert len(server.requests) == first
    record = json.loads((tmp_path / "out" / "values.json").read_text())
    assert record["counts"]["answers"] == 12 and record["counts"]["verdicts"] == 24
    assert {d["mean"] for d in record["dimensions"].values()} == {1.0}
    assert first == 12 + 24 + len(faults)
    printed = capsys.readouterr().out
    assert "Response 1 was chosen in 0.500" in printed


def small_set(folder: Path, n: int) -> Path:
    data = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    data["questions"] = data["questions"][:n]
    data["dimensions"] = data["dimensions"][:1]
    path = folder / "questions.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_a_local_folder_and_the_embedded_judge(tmp_path: Path) -> None:
    folder, out = tmp_path / "lm", tmp_path / "out"
    write_causal_lm(folder, texts())
    command = ["values", "--tested.model", folder, "--tested.device", "cpu", "--out", out]
    command += ["--judge.model", "embedded", "--questions", small_set(tmp_path, 3)]
    command += ["--answers", "2", "--max-tokens", "8"]
    assert main([str(part) for part in command]) == 0
    record = json.loads((out / "values.json").read_text())
    assert record["model"]["identity"].startswith("sha256:")
    assert record["counts"]["answers"] == 6
    assert record["account"]["tested"]["calls"] == 6
    assert (out / "values.png").read_bytes()[:4] == b"\x89PNG"
    assert "not the questions of the VISA paper" in (out / "values.md").read_text()
    # Other weights in the same folder are another model: all is asked anew.
    torch.manual_seed(1)
    write_causal_lm(folder, texts())
    assert main([str(part) for part in command]) == 0
    again = json.loads((out / "values.json").read_text())
    assert again["account"]["tested"]["calls"] == 6
    assert again["model"]["identity"] != record["model"]["identity"]


def test_two_runs_on_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "answers.jsonl"),
        pytest.raises(CheckpointError, match="in use by another run"),
    ):
        Journal(tmp_path / "answers.jsonl")


def test_a_broken_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(CheckpointError, match=r"answers.jsonl:2: not a record"):
        Journal(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.pop("questions"), "questions must be a list"),
        (lambda d: d["questions"][0].update(dimension="mood"), "'mood', which is none of"),
        (lambda d: d["questions"][1].update(id=d["questions"][0]["id"]), "is there twice"),
        (lambda d: d["questions"][0].pop("default_answer"), "questions[1]: must have exactly"),
        (lambda d: d["questions"][2].update(question=" "), "question must be a text"),
        (lambda d: d["dimensions"].append({**d["dimensions"][0], "name": "x"}), "has no question"),
    ],
)
def test_bad_question_sets_are_refused(tmp_path: Path, change, sentence: str) -> None:
    path = small_set(tmp_path, 4)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        load_questions(path)
    assert sentence in str(error.value) and str(path) in str(error.value)


def test_bad_prompts_and_flags_are_refused(tmp_path: Path, complaint) -> None:
    bad = tmp_path / "judge.txt"
    bad.write_text("[user]\n{question} {first} {second} {high} {low}")
    with pytest.raises(ValueError, match="lacks {criterion}"):
        JudgePrompt.load(bad)
    out = ("--out", tmp_path / "out")
    assert "--judge.model: name the model" in complaint("values", "--tested.model", "x", *out)
    assert "--tested.model: name the model" in complaint("values", *out)
    both = ("--tested.model", tmp_path / "none", "--judge.model", "embedded")
    assert "is not a model folder" in complaint("values", *both, *out)
    assert "--answers must be at least 1" in complaint("values", *both, *out, "--answers", "0")
