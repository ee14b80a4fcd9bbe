"""Annotators of comparisons: word counts by hand, a chat model over a bad line, a local folder."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import vllm_build
from tests.http_server import ChatServer, Fault
from tests.preferences import levels_of, marked_pairs, reading
from tests.tiny import write_causal_lm, write_lines
from visa_core.data.annotate.annotator import Annotation, Invalid, comparison_key
from visa_core.data.annotate.cache import AnnotationCache
from visa_core.data.annotate.chat import ChatAnnotator, swapped
from visa_core.data.annotate.lexicon import LexiconAnnotator
from visa_core.data.annotate.stage import annotate_stream
from visa_core.data.construction.build import build
from visa_core.data.construction.comparison import Comparison, Intake
from visa_core.data.construction.config import AnnotatorConfig, BuildConfig, TripletConfig
from visa_core.data.schema import DataError
from visa_core.endpoints import ChatConfig, EmbeddedChat, EndpointError
from visa_core.value_space import Dimension, ValueSpace
from visa_core.values import SCHWARTZ

LEXICON = LexiconAnnotator()


def halves(**levels: int) -> tuple[int, ...]:
    named = {name.replace("_", "-"): level for name, level in levels.items()}
    return tuple(named.get(name, 0) for name in SCHWARTZ.names)


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", {}),
        ("It is safe.", {"security": 1}),
        ("Safe, safety and safely.", {"security": 2}),
        ("It is not safe.", {"security": -1}),
        ("It is not at all very safe.", {"security": 1}),
        ("SAFE and boring", {"security": 1, "stimulation": -1}),
        ("Break the rules.", {"conformity": -1}),
        ("Keep the rules.", {"conformity": 1}),
        ("Go step by step.", {"achievement": 1}),
        ("Seek new experiences.", {"stimulation": 1}),
        ("A new experiment.", {"self_direction": 1}),
        ("Treat yourself.", {"hedonism": 1}),
    ],
)
def test_value_words_are_counted(text: str, levels: dict[str, int]) -> None:
    assert LEXICON.levels(text, "", "")[0] == halves(**levels)


@pytest.mark.parametrize(
    ("explanation", "chosen", "rejected"),
    [
        ("It is safer.", {"security": 1}, {}),
        ("It is very safe.", {"security": 2}, {}),
        ("It is less safe than the others.", {"security": -1}, {}),
        ("The others are unsafe.", {}, {"security": -1}),
        ("It is fun, but the other answers are dull.", {"hedonism": 1}, {"stimulation": -1}),
        ("It is safe. The other one is safe.", {"security": 1}, {"security": 1}),
        ("It is longer.", {}, {}),
    ],
)
def test_the_explanation_decides(explanation: str, chosen: dict, rejected: dict) -> None:
    found = LEXICON.levels("Some words.", "Other words.", explanation)
    assert found[0] == halves(**chosen)
    assert found[1] == halves(**rejected)


def test_an_explanation_overrules_the_words() -> None:
    """The texts say the opposite of the reason; the levels keep the reason's order, in bounds."""
    safe = "Safe, safety, safely, protect."
    for explanation, direction in (("It is safer.", 1), ("It is less safe.", -1)):
        for texts in ((safe, "x"), ("x", safe), (safe, safe), ("unsafe reckless careless", "x")):
            chosen, rejected = (levels[5] for levels in LEXICON.levels(*texts, explanation))
            assert direction * (chosen - rejected) >= 1
            assert {chosen, rejected} <= {-2, -1, 0, 1, 2} and direction * chosen >= 0


def test_a_space_without_keywords_is_refused() -> None:
    calm = Dimension(name="calm", title="Calm", definition="Stay calm.")
    bare = ValueSpace(name="bare", dimensions=(calm,))
    with pytest.raises(ValueError, match="'calm' of space 'bare' has none"):
        LexiconAnnotator(bare)


def config(
    tmp_path: Path, data: Path, url: str, chat: dict[str, Any] | None = None, **more: Any
) -> BuildConfig:
    options = {"model": "m", "base_url": url, "backoff": 0.002, "timeout": 0.4, "concurrency": 8}
    annotator = AnnotatorConfig(kind="chat", chat=ChatConfig(**options | (chat or {})), **more)
    triplets = TripletConfig(near=1.0, ambiguous_share=0.0)
    return BuildConfig(
        data=(f"jsonl:{data}",), out=tmp_path / "out", annotator=annotator, triplets=triplets
    )


def triplets_in(out: Path) -> list[dict[str, Any]]:
    lines = [line for path in (out / "triplets").glob("*.jsonl") for line in path.open()]
    return [json.loads(line) for line in lines]


KINDS = ("429", "500", "503", "cut", "cut_early", "not_json", "wrong_keys", "no_text",
         "invalid_answer", "delay", "hang", "no_side", "off_grid")  # fmt: skip
COUNTED = {
    "no_text": "wrong_keys",
    "cut_early": "cut",
    "hang": "timeout",
    "no_side": "invalid_answer",
    "off_grid": "invalid_answer",
}


def test_over_a_bad_line_nothing_is_lost_doubled_or_uncounted(tmp_path: Path) -> None:
    rows = marked_pairs(52)
    data = write_lines(tmp_path / "p.jsonl", rows)

    def kind_of(body: dict[str, Any], before: int) -> str:
        asked = body["messages"][1]["content"]
        number = int(asked.split("question ")[1].split()[0])
        again = before or len(body["messages"]) > 2
        return "" if again else KINDS[number % len(KINDS)]

    def fault(body: dict[str, Any], before: int) -> Fault | None:
        kind = kind_of(body, before)
        seconds = {"delay": 0.05, "hang": 0.8}.get(kind, 0.0)
        spoken = kind in ("", "no_side", "off_grid")
        return None if spoken else Fault(kind, seconds=seconds, retry_after=0.01)

    told: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> str:
        right = json.loads(reading(body))
        kind = kind_of(body, 0)
        told[kind] += kind in ("no_side", "off_grid")
        if kind == "no_side":
            del right["B"]
        if kind == "off_grid":
            right["A"]["power"] = 0.25
        return json.dumps(right)

    with ChatServer(answer, fault_of=fault) as server:
        report = build(config(tmp_path, data, server.url))
    stages, run = report["stages"], report["run"]
    assert stages["comparisons annotated"] == stages["comparisons read"] == 52
    assert run["answers"] == {
        "answers from the cache": 0,
        "answers shared with an equal comparison": 0,
        "answers asked for": 52,
    }
    expected: Counter[str] = Counter()
    for kind, count in (server.faults_done + told).items():
        expected[COUNTED.get(kind, kind)] += count if kind != "delay" else 0
    assert run["account"]["faults"] == {kind: n for kind, n in expected.items() if n}
    assert sum(expected.values()) == 4 * (len(KINDS) - 1) and run["account"]["failures"] == 0
    assert run["account"]["calls"] == len(server.requests) == 52 + 4 * (len(KINDS) - 1)
    made = {
        (row["query"], row["response"], row["reference"]): row
        for row in triplets_in(tmp_path / "out")
    }
    wanted = [(r["prompt"], *texts) for r in rows for texts in both_ways(r)]
    assert set(made) == {key for key in wanted if levels_of(key[1]) != levels_of(key[2])}
    assert len(made) == stages["triplets"] == 2 * (52 - stages["dropped: negligible shift"])
    for (_, source, reference), row in made.items():
        assert row["values"] == levels_of(source) and row["target"] == levels_of(reference)
    with sqlite3.connect(tmp_path / "out" / "answers.sqlite") as db:
        assert db.execute("SELECT count(*), count(distinct key) FROM outcome").fetchone() == (
            52,
            52,
        )
    raw = (tmp_path / "out" / "raw.jsonl").read_text().splitlines()
    assert len(raw) == 52 + 4 * 3 and run["all_runs"]["invalid"] == 4 * 3


def both_ways(row: dict[str, str]) -> list[tuple[str, str]]:
    return [(row["rejected"], row["chosen"]), (row["chosen"], row["rejected"])]


def test_what_stays_invalid_is_set_aside_and_not_paid_for_again(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "p.jsonl", marked_pairs(12))

    def bad(body: dict[str, Any]) -> bool:
        return "question 7 " in body["messages"][1]["content"]

    with ChatServer(lambda b: '{"A": 1}' if bad(b) else reading(b)) as server:
        report = build(config(tmp_path, data, server.url))
        assert report["stages"]["comparisons with invalid answers"] == 1
        assert report["run"]["account"]["faults"] == {"invalid_answer": 3}
        (aside,) = map(json.loads, (tmp_path / "out" / "set_aside.jsonl").open())
        assert aside["line"] == 8 and aside["path"] == str(data)
        assert "invalid after 3 answers: 'reasoning' is a required" in aside["reason"]
        asked = len(server.requests)
        assert build(config(tmp_path, data, server.url))["run"]["account"]["calls"] == 0
        server.answer = reading
        again = build(config(tmp_path, data, server.url, retry_invalid=True))
        assert again["stages"]["comparisons annotated"] == 12
        assert len(server.requests) == asked + 1


def test_what_fails_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "p.jsonl", marked_pairs(6))

    def refuse(body: dict[str, Any], before: int) -> Fault | None:
        return Fault("400") if "question 2 " in body["messages"][1]["content"] else None

    with ChatServer(reading, fault_of=refuse) as server:
        report = build(config(tmp_path, data, server.url))
        assert report["stages"]["comparisons without an answer"] == 1
        assert report["run"]["account"]["failures"] == 1
        server.fault_of = None
        report = build(config(tmp_path, data, server.url))
        assert report["stages"]["comparisons annotated"] == 6
        assert report["run"]["answers"]["answers from the cache"] == 5


def test_a_dead_endpoint_stops_the_build_and_keeps_what_it_said(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "p.jsonl", marked_pairs(30))

    turn = itertools.count()  # requests come two at a time

    def dead(body: dict[str, Any], before: int) -> Fault | None:
        return None if next(turn) < 10 else Fault("500")

    options = {"retries": 1, "give_up_after": 3, "concurrency": 2}
    with ChatServer(reading, fault_of=dead) as server:
        with pytest.raises(EndpointError, match=r"[34] requests in a row failed for good"):
            build(config(tmp_path, data, server.url, options))
        assert server.answered == 10
        server.fault_of = None
        report = build(config(tmp_path, data, server.url, options))
    assert report["run"]["answers"]["answers from the cache"] == 10
    assert report["stages"]["comparisons annotated"] == 30 and server.answered == 30


def pair(**texts: str) -> Comparison:
    return Comparison(**{"prompt": "p", "chosen": "c", "rejected": "r"} | texts)


def test_the_key_is_of_the_annotator_and_the_four_texts() -> None:
    base = comparison_key("a", pair())
    assert base == comparison_key("a", pair(id="other", path="x", root="y", language="fr"))
    others = [comparison_key("b", pair())]
    others += [comparison_key("a", pair(**{name: "z"}))
               for name in ("prompt", "chosen", "rejected", "explanation")]  # fmt: skip
    others += [comparison_key("a", pair(prompt="pc", chosen=""))]
    assert len({base, *others}) == 7


def annotator(answer: Callable[[Any], str], **more: Any) -> ChatAnnotator:
    return ChatAnnotator(EmbeddedChat(answer), **more)


def test_settings_and_prompts_change_the_key_and_places_do_not_follow_preference() -> None:
    names = {
        annotator(str).name,
        annotator(str, temperature=0.5).name,
        annotator(str, reasks=1).name,
    }
    assert len(names) == 3
    keys = [comparison_key("a", pair(prompt=str(i))) for i in range(400)]
    assert 150 < sum(map(swapped, keys)) < 250
    for key in keys[:8]:
        asked = annotator(str).request(key, pair(explanation="Because {chosen}.")).messages[1]
        content = asked["content"]
        places = ("B:\nc", "A:\nr") if swapped(key) else ("A:\nc", "B:\nr")
        assert all(f"Response {place}\n" in content for place in places)
        assert f"Preferred: {places[0][0]}" in content and "Because {chosen}." in content


def test_prompt_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    for text, said in (
        ("no mark", r"needs a line \[user\]"),
        ("[user]\n{prompt} {first}", "lacks {second}, {preferred}, {explanation}"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            annotator(str, template=path)
    with pytest.raises(ValueError, match="nowhere.txt: No such file"):
        annotator(str, template=tmp_path / "nowhere.txt")


def test_equal_comparisons_of_a_chunk_are_asked_for_once(tmp_path: Path) -> None:
    rows = [pair(id=str(i), prompt=str(i % 3)) for i in range(10)]
    seen: list[str] = []

    def answer(request: Any) -> str:
        seen.append(request.tag)
        return reading({"messages": request.messages})

    intake = Intake()
    with AnnotationCache(tmp_path / "a.sqlite") as cache:
        settled: list[int] = []
        stream = annotate_stream(
            rows, annotator(answer), cache, intake, chunk=4, progress=settled.append
        )
        found = list(stream)
        assert sum(settled) == 10
        assert [row.comparison.id for row in found] == [str(i) for i in range(10)]
        assert len(seen) == 3
        assert {row.key for row in found} == set(map(bytes.fromhex, seen))
    counts = [intake.counts[f"answers {how}"] for how in
              ("asked for", "shared with an equal comparison", "from the cache")]  # fmt: skip
    assert counts == [3, 1, 6]


def test_the_cache_keeps_outcomes_across_openings(tmp_path: Path) -> None:
    path, outcome = tmp_path / "a.sqlite", Annotation(chosen=(2, -2, 0), rejected=(-1, 1, 0))
    with AnnotationCache(path) as cache:
        cache.record(b"1", outcome)
        cache.record(b"2", Invalid(reason="no"))
        cache.record(b"3", Invalid(reason="cut", failed=True))
        assert set(cache.find([b"1", b"2", b"3", b"4"])) == {b"1", b"2", b"3"}
    with AnnotationCache(path) as cache:
        assert cache.find([b"1", b"2", b"3"]) == {b"1": outcome, b"2": Invalid(reason="no")}
        assert cache.forget_invalid() == 1 and set(cache.find([b"1", b"2"])) == {b"1"}
    path.write_text("text that is no data base, but long enough to be taken for one" * 20)
    with pytest.raises(DataError, match="a.sqlite: cannot be used as a cache of answers"):
        AnnotationCache(path)


def write_speaker(folder: Path, said: str) -> None:
    """A causal LM that says one thing: no layer moves the hidden state, the head maps any token to
    the one that holds the text, and that one to the end.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    asked = annotator(str).request(bytes(16), pair()).messages  # few tokens make it fast
    write_causal_lm(folder, [m["content"] for m in asked] * 2, vocabulary=1500)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([said])
    config = AutoConfig.from_pretrained(folder, head_dim=32)  # vLLM on CPUs takes no smaller one
    model = AutoModelForCausalLM.from_config(config)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text = tokenizer.convert_tokens_to_ids(said)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        inputs.zero_()[:, 0] = 1
        inputs[text] = torch.eye(inputs.shape[1])[1]
        head.zero_()[text, 0] = 5
        head[tokenizer.eos_token_id, 1] = 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "engine", ["hf", pytest.param("vllm", marks=[vllm_build.needs_vllm, pytest.mark.slow])]
)
def test_a_local_folder_annotates(tmp_path: Path, engine: str) -> None:
    if engine == "vllm":
        vllm_build.attach()
    first, second = levels_of("<security=1>"), levels_of("<power=-0.5>")
    write_speaker(
        tmp_path / "lm", json.dumps({"reasoning": "so", "A": first, "B": second}, separators=",:")
    )
    data = write_lines(tmp_path / "p.jsonl", marked_pairs(5))
    chat = {"model": str(tmp_path / "lm"), "base_url": "", "device": "cpu", "engine": engine}
    chat["max_length"] = 4096
    report = build(config(tmp_path, data, "", chat, max_tokens=8))
    assert report["stages"]["comparisons annotated"] == 5
    assert report["run"]["account"]["completion_tokens"] >= 5
    places = {True: 0, False: 0}
    name = report["annotator"]
    for row in triplets_in(tmp_path / "out"):
        texts = (row["reference"], row["response"])
        chosen, rejected = texts if row["id"].endswith("pos") else texts[::-1]
        (line,) = [p for p in marked_pairs(5) if p["chosen"] == chosen]
        key = comparison_key(name, pair(prompt=row["query"], chosen=chosen, rejected=rejected,
                                        explanation=line["explanation"]))  # fmt: skip
        at_a = row["reference"] == (rejected if swapped(key) else chosen)
        assert row["target"] == (first if at_a else second)
        places[at_a] += 1
    assert places == {True: 5, False: 5}


def test_an_untrained_local_folder_ends_with_a_sentence(tmp_path: Path) -> None:
    write_causal_lm(tmp_path / "lm", ["some text to make a tokenizer from"])
    data = write_lines(tmp_path / "p.jsonl", marked_pairs(3))
    chat = {"model": str(tmp_path / "lm"), "base_url": "", "device": "cpu"}
    with pytest.raises(DataError, match="no triplet is left .*with invalid answers: 3") as refused:
        build(config(tmp_path, data, "", chat, max_tokens=8, reasks=0))
    assert f"the first set aside: {data}:1: line-1: invalid after 1 answers: " in str(refused.value)
