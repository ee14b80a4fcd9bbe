"""Methods beside each other: edit size, intervals and tests against references, prompted rewriting
over a real HTTP server, and the whole command, restarted.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.http_server import ChatServer
from visa_core import cli
from visa_core.config import EvaluationConfig
from visa_core.endpoints import ChatConfig, EmbeddedChat, open_chat
from visa_core.evaluation.baselines.prompting import STYLES, PartlyAnswered, PromptedRewriter
from visa_core.evaluation.edits import edit_share
from visa_core.evaluation.methods import shapes
from visa_core.evaluation.methods.rows import Row
from visa_core.evaluation.methods.summary import sign_matches, summarise_rows
from visa_core.evaluation.resampling import bootstrap, paired_permutation
from visa_core.values import SCHWARTZ

WORDS = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS)
def test_edit_share_is_nltks_edit_distance(source: str, rewrite: str) -> None:
    nltk = pytest.importorskip("nltk.metrics.distance")
    a, b = source.split(), rewrite.split()
    wanted = nltk.edit_distance(a, b) / max(len(a), len(b), 1)
    assert edit_share(source, rewrite) == pytest.approx(wanted)


def test_bootstrap_is_scipys_and_covers_the_mean() -> None:
    scipy = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).gamma(2.0, size=80)
    wanted = scipy.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, random_state=1
    ).confidence_interval
    assert bootstrap(values) == pytest.approx(tuple(wanted), abs=0.02)
    with pytest.raises(ValueError, match="at least one observation"):
        bootstrap(np.array([]))


@pytest.mark.parametrize("n", [6, 40])
def test_paired_permutation_is_scipys(n: int) -> None:
    """All sign patterns for six prompts, drawn ones for forty; ties of 0 change nothing."""
    scipy = pytest.importorskip("scipy.stats")
    differences = np.random.default_rng(5).normal(0.25, 1.0, n)
    wanted = scipy.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        random_state=0,
    ).pvalue
    found = paired_permutation(np.concatenate([differences, np.zeros(3)]))
    assert found == pytest.approx(wanted, abs=1e-12 if n == 6 else 0.015)
    assert paired_permutation(np.zeros(4)) == 1.0


def test_signs_match_where_both_are_on_one_side_of_the_quarter() -> None:
    values = torch.tensor([[0.3, -0.9, 0.2, 0.6]])
    targets = torch.tensor([[1.0, -0.5, 0.0, -0.5]])
    assert sign_matches(values, targets).tolist() == [3]


def row(method: str, prompt: str, system: str, level: float, **more) -> Row:
    target = [1.0] + [0.0] * 9
    return Row(
        model="m",
        method=method,
        system=system,
        identity="i",
        prompt=prompt,
        query="q",
        source="a b c d",
        target=target,
        rewrite="a b c e",
        finished=True,
        values=[level] + [0.0] * 9,
        edit=0.25,
        **{"fwd": 0.9, "bwd": 0.6, **more},
    )


def rows_of_two_seeds() -> list[Row]:
    """grpo reaches the target everywhere, sft on half of the prompts; ten prompts, two seeds."""
    rows = []
    for system in ("s0", "s1"):
        for i in range(10):
            rows.append(row("grpo", f"p{i}", system, 1.0))
            rows.append(row("sft", f"p{i}", system, 1.0 if i % 2 else 0.0))
            rows.append(replace(row("copy", f"p{i}", system, 0.0, fwd=1.0, bwd=1.0), edit=0.0))
    return rows


def test_figures_intervals_and_tests_are_of_prompts_and_not_of_rows() -> None:
    record = summarise_rows(rows_of_two_seeds(), SCHWARTZ, EvaluationConfig(), "grpo")
    methods = record["models"]["m"]
    assert list(methods) == ["copy", "grpo", "sft"]
    sft = methods["sft"]
    assert sft["n"] == 20 and sft["prompts"] == 10 and sft["jsr"] == 0.5
    assert sft["consistency_mean"] == pytest.approx(0.8)
    assert sft["seeds"] == {"s0": 0.5, "s1": 0.5}
    assert methods["copy"]["edit_mean"] == 0 and methods["copy"]["unchanged_share"] == 1
    tests = record["tests"]["m"]
    assert tests["jsr"]["baseline"] == "sft", "the copy is no candidate"
    assert tests["jsr"]["n"] == 10 and tests["jsr"]["difference"] == 0.5
    assert tests["jsr"]["p"] == 2 / 2**5, "five prompts differ, of all 32 sign patterns two"
    assert tests["l2"]["difference"] == -0.5 and not tests["l2"]["worse"]


def test_tables_have_the_published_shapes() -> None:
    record = summarise_rows(rows_of_two_seeds(), SCHWARTZ, EvaluationConfig(), "grpo")
    header, rows = shapes.table1(record["models"])
    assert header[:4] == ["Method", "Model", "Consistency mean", "Consistency std"]
    assert len(header) == 12 and ["grpo", "m", "0.8000"] == rows[1][:3]
    header, rows = shapes.table5(record["models"], SCHWARTZ)
    assert len(header) == 2 + 8 + 1 + 10 + 1
    assert rows[2][10] == "0.5000" and rows[2][-1] == "0.0500"
    text = shapes.latex(record, SCHWARTZ)
    assert text.count("\\begin{tabular}") == 3 and "95\\%" in text
    assert "first on joint success is grpo" in shapes.first(record["models"], "grpo")[0]
    assert (
        "grpo is not first" in shapes.first({"m": {"grpo": {"jsr": 0}, "a": {"jsr": 1}}}, "grpo")[0]
    )


@pytest.mark.parametrize("style", STYLES)
def test_prompts_hold_the_request_and_thinking_is_taken_off(style: str) -> None:
    asked = []

    def answer(request) -> str:
        asked.append(request)
        return "<think>first, second</think>\n A rewrite. "

    rewriter = PromptedRewriter(EmbeddedChat(answer), style)
    target = SCHWARTZ.vector({"security": 1.0, "power": -0.5})
    texts, whole = rewriter.sample(["Why {query}?"], ["Because."], target[None], temperature=0.2)
    assert texts == ["A rewrite."] and whole.all()
    system, user = (m["content"] for m in asked[0].messages)
    assert "Why {query}?" in user and "Because." in user
    assert "power -0.5" in user and "security +1" in user
    assert ("<think>" in system) == (style == "think")
    assert asked[0].temperature == 0.2


def test_cut_thinking_is_asked_again_and_then_empty_and_a_dead_request_keeps_the_others() -> None:
    rewriter = PromptedRewriter(EmbeddedChat(lambda r: "<think>on and on"), "think", reasks=1)
    target = torch.zeros(1, 10)
    assert rewriter.rewrite(["q"], ["r"], target) == [""]
    assert rewriter.chat.account.calls == 2

    def dies(request) -> str:
        if "bad" in request.messages[-1]["content"]:
            raise ValueError("refused by the model")
        return "fine"

    rewriter = PromptedRewriter(EmbeddedChat(dies), "simple")
    with pytest.raises(PartlyAnswered, match="no reply to 1 of 2") as caught:
        rewriter.sample(["good", "bad"], ["r", "r"], torch.zeros(2, 10))
    assert caught.value.texts == ["fine", None]


def test_prompting_asks_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer(answer=lambda body: "Rewritten.") as server:
        chat = open_chat(ChatConfig(model="m", base_url=server.url, backoff=0.01))
        rewriter = PromptedRewriter(chat, "rules")
        assert rewriter.rewrite(["q"] * 3, ["r"] * 3, torch.zeros(3, 10)) == ["Rewritten."] * 3
        assert len(server.requests) == 3


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_small_system(tmp_path_factory.mktemp("system"))
    (folder / "data").mkdir()
    tiny.write_tasks(folder / "data" / "held_out.jsonl", n=6)
    (folder / "quickstart.json").write_text("{}")
    return folder


def bench(system: Path, out: Path, *more: object) -> list[str]:
    options = ["--systems", system, "--out", out, "--methods", "sft=rewriter", "grpo=rewriter"]
    return ["bench", "methods", *map(str, options), "--device", "cpu", *map(str, more)]


def test_the_command_samples_once_and_tables_come_back(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run changes nothing; a file cut by a kill is completed; a chat model's rows join the
    tables; thresholds can be others without sampling.
    """
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = tmp_path / "out"
    assert cli.main(bench(system, out)) == 0
    rows = (out / "rows.jsonl").read_text()
    records = [json.loads(line) for line in rows.splitlines()]
    assert Counter(r["method"] for r in records) == {"copy": 6, "sft": 6, "grpo": 6}
    assert all(r["truth"] is not None for r in records)
    assert all(r["rewrite"] == r["source"] for r in records if r["method"] == "copy")
    (out / "rows.jsonl").write_text(rows[: len(rows) * 2 // 3])
    assert cli.main(bench(system, out)) == 0
    again = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert sorted(records, key=str) == sorted(again, key=str)
    with ChatServer(answer=lambda body: "<think>x</think>Say it.") as server:
        chat = ["--chat.model", "gpt", "--chat.base-url", server.url, "--chat.backoff", 0.01]
        more = ["--prompting", "simple", "think", *chat]
        assert cli.main(bench(system, out, "--methods", "none", *more)) == 0
        assert len(server.requests) == 12
        assert cli.main(bench(system, out, "--methods", "none", *more)) == 0
        assert len(server.requests) == 12, "nothing is asked twice"
    capsys.readouterr()
    tables = ["bench", "tables", "--out", str(out), "--l2-below", "9", "--consistency-above", "0"]
    assert cli.main([*tables, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert set(found["gpt"]) == {"copy", "simple", "think"}
    for name in ("methods.md", "methods.tex", "methods.json", "sign_matches.png"):
        assert (out / name).stat().st_size > 500
    assert "Known by construction" in (out / "methods.md").read_text()


def test_an_endpoint_that_fails_keeps_what_came(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    count = iter(range(100))

    def fault(body, seen):
        from tests.http_server import Fault

        return Fault("400") if next(count) == 3 else None

    with ChatServer(answer=lambda body: "Say it.", fault_of=fault) as server:
        chat = ["--chat.model", "gpt", "--chat.base-url", server.url, "--chat.concurrency", 1]
        more = ["--methods", "none", "--prompting", "simple", *chat]
        assert cli.main(bench(system, tmp_path / "out", *more)) == 2
        assert "run again to ask for the rest" in capsys.readouterr().err
        assert cli.main(bench(system, tmp_path / "out", *more)) == 0
        assert len(server.requests) == 7


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--methods", "grpo"], "is no NAME=FOLDER pair"),
        (["--methods", "copy=a"], "stands for something already"),
        (["--methods", "dpo=dpo"], "which --methods dpo=dpo names"),
        (["--prompting", "simple"], "--prompting needs --chat.model"),
        (["--temperature", "-1"], "--temperature must be at least 0"),
    ],
)
def test_bad_options_are_told(
    system: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    try:
        status = cli.main(bench(system, tmp_path / "out", *more))
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_rows_are_plain_data() -> None:
    assert json.loads(json.dumps(asdict(row("a", "p", "s", 0.5))))["values"][0] == 0.5


def test_systems_of_other_values_are_kept_apart(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kept = tmp_path / "space.json"
    replace(SCHWARTZ, name="mine", dimensions=SCHWARTZ.dimensions[:3], axes=()).save(kept)
    assert cli.main(bench(system, tmp_path)) == 2
    assert f"{system} has other values than {kept}" in capsys.readouterr().err
    assert cli.main(["bench", "tables", "--out", str(tmp_path / "no")]) == 2
    assert "`visa bench methods` writes it" in capsys.readouterr().err


def test_a_local_chat_folder_is_prompted(system: Path, tmp_path: Path) -> None:
    """An untrained one writes nothing of use, but each style has a row a prompt, with its size."""
    tiny.write_causal_lm(tmp_path / "chat", tiny.texts())
    chat = ["--methods", "none", "--chat.model", tmp_path / "chat", "--max-tokens", 12, "--n", 2]
    assert cli.main(bench(system, tmp_path / "out", *chat, "--prompting", *STYLES)) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()]
    assert Counter(r["method"] for r in rows) == dict.fromkeys(("copy", *STYLES), 2)
    assert {r["model"] for r in rows} == {"chat"} and all(r["parameters"] > 1000 for r in rows)
