"""Chat models: an endpoint that misbehaves over HTTP, a local folder, answers of a form."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests import tiny
from tests.http_server import ChatServer, Fault
from visa_core.endpoints import (
    Answer,
    ChatConfig,
    ChatRequest,
    EmbeddedChat,
    EndpointError,
    Refused,
    answers,
    complete,
    message,
    open_chat,
)
from visa_core.endpoints.limits import retry_after
from visa_core.endpoints.structured import json_object

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def ask(text: str, **more: object) -> ChatRequest:
    return ChatRequest(messages=(message("user", text),), **more)


def chat_of(server: ChatServer, **more: object):
    options = {"model": "m", "base_url": server.url, "backoff": 0.002, "timeout": 5.0} | more
    return open_chat(ChatConfig(**options))


def echo(body: dict) -> str:
    return body["messages"][-1]["content"].upper()


def test_replies_come_in_order_and_tokens_are_counted() -> None:
    with ChatServer(echo) as server:
        chat = chat_of(server, input_price=2.0, output_price=10.0)
        replies = complete(chat, [ask(f"hello number {i}") for i in range(20)])
    assert [reply.text for reply in replies] == [f"HELLO NUMBER {i}" for i in range(20)]
    assert chat.account.calls == chat.account.answers == 20
    assert (chat.account.prompt_tokens, chat.account.completion_tokens) == (60, 60)
    assert chat.account.cost == pytest.approx(60 * (2 + 10) / 1e6)


KINDS = ("429", "500", "503", "cut", "cut_early", "not_json", "wrong_keys", "no_text")
COUNTED = {"cut_early": "cut", "no_text": "wrong_keys"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_repeated_and_counted(kind: str) -> None:
    faults = [Fault(kind), Fault(kind), None, Fault(kind)]
    with ChatServer(echo, faults) as server:
        chat = chat_of(server, concurrency=2)
        replies = complete(chat, [ask(f"text {i}") for i in range(6)])
        assert server.answered == 6
    assert [reply.text for reply in replies] == [f"TEXT {i}" for i in range(6)]
    assert chat.account.faults == {COUNTED.get(kind, kind): 3}
    assert (chat.account.calls, chat.account.failures) == (9, 0)


def test_a_slow_endpoint_times_out_and_is_asked_again() -> None:
    with ChatServer(echo, [Fault("hang", seconds=1.0)]) as server:
        chat = chat_of(server, timeout=0.2)
        assert complete(chat, [ask("a")])[0].text == "A"
    assert chat.account.faults == {"timeout": 1}


def test_retry_after_is_honoured_by_all() -> None:
    with ChatServer(echo, [Fault("429", retry_after=0.4)]) as server:
        chat = chat_of(server, concurrency=1)
        complete(chat, [ask("a"), ask("b")])
        assert server.started[1] - server.started[0] >= 0.39


def test_retry_after_is_read_in_every_form() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": date}, now) == 90
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None


def test_concurrency_and_rate_have_limits() -> None:
    slow = [Fault("delay", seconds=0.05)] * 12
    with ChatServer(echo, slow) as server:
        complete(chat_of(server, concurrency=3), [ask(str(i)) for i in range(12)])
        assert server.most_at_once == 3
    with ChatServer(echo) as server:
        complete(chat_of(server, requests_per_minute=1200), [ask(str(i)) for i in range(5)])
        gaps = [b - a for a, b in zip(server.started, server.started[1:], strict=False)]
        assert sum(gaps) >= 4 * 0.05 * 0.9
    with ChatServer(echo) as server:  # two tokens a request, ten a second
        chat = chat_of(server, tokens_per_minute=600, concurrency=1)
        complete(chat, [ask(str(i)) for i in range(3)])
        assert server.started[2] - server.started[0] >= 0.39


def test_requests_are_taken_only_as_fast_as_they_are_worked_on() -> None:
    taken = []

    def source() -> Iterator[ChatRequest]:
        for i in range(1000):
            taken.append(i)
            yield ask(str(i))

    with ChatServer(echo) as server:
        replies = chat_of(server, concurrency=4).stream(source())
        for _ in range(10):
            next(replies)
        replies.close()
    assert len(taken) <= 10 + 2 * 4


def test_a_request_that_is_refused_fails_alone() -> None:
    with ChatServer(echo, [Fault("400")]) as server:
        chat = chat_of(server, concurrency=1)
        first, second = complete(chat, [ask("a"), ask("b")])
    assert "400" in first.error and second.text == "B"
    assert chat.account.failures == 1 and chat.account.calls == 2


def test_a_dead_endpoint_stops_the_run_with_what_it_had() -> None:
    faults = [None, *[Fault("500")] * 100]
    with ChatServer(echo, faults) as server:
        chat = chat_of(server, concurrency=1, retries=1, give_up_after=3)
        seen = []
        with pytest.raises(EndpointError, match="3 requests in a row failed .* 500: sent 500"):
            seen += list(chat.stream(ask(str(i)) for i in range(100)))
        assert len(server.requests) == 1 + 3 * 2
    with pytest.raises(EndpointError, match="no connection"):
        complete(chat, [ask("x")] * 3)


def test_the_key_comes_from_the_environment_and_is_never_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with ChatServer(echo, key="sk-secret") as server:
        chat = chat_of(server, api_key_env="MY_KEY")
        assert complete(chat, [ask("a")])[0].text == "A"
        monkeypatch.setenv("MY_KEY", "sk-wrong")
        with pytest.raises(EndpointError, match="refuses the key.*MY_KEY.*wrong key") as error:
            complete(chat_of(server, api_key_env="MY_KEY"), [ask("a")])
    told = f"{error.value} {caplog.text} {chat!r} {chat.name} {chat.config}"
    assert "sk-secret" not in told and "sk-wrong" not in told
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(EndpointError, match="set the environment variable MY_KEY"):
        open_chat(
            ChatConfig(model="m", base_url="https://api.example.org/v1", api_key_env="MY_KEY")
        )


def test_a_run_stops_at_its_cost_limit() -> None:
    with ChatServer(echo) as server:
        chat = chat_of(server, concurrency=1, output_price=1e6, cost_limit=3.0)
        with pytest.raises(EndpointError, match="past cost_limit 3"):
            complete(chat, [ask("word")] * 9)
        assert server.answered == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"base_url": "ftp://x"}, "must start with http"),
        ({"base_url": "https://me:pw@x.org/v1"}, "must not hold a user name or password"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"extra": "[1]"}, "extra must be a JSON object"),
        ({"extra": "{"}, "extra is not valid JSON"),
        ({"cost_limit": 1.0}, "cost_limit needs input_price"),
    ],
)
def test_bad_settings_are_named(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ChatConfig(model="m", **options)


def test_the_body_says_what_was_asked_for() -> None:
    with ChatServer(echo) as server:
        chat = chat_of(server, extra='{"top_p": 0.9}', token_field="max_completion_tokens")
        complete(chat, [ask("a", temperature=0.2, max_tokens=7, seed=3, schema=SCHEMA)])
        body = server.requests[0]
        complete(chat_of(server, structured="object"), [ask("a", schema=SCHEMA)])
        complete(chat_of(server, structured="none"), [ask("a", schema=SCHEMA)])
    assert (body["temperature"], body["max_completion_tokens"], body["seed"]) == (0.2, 7, 3)
    assert body["top_p"] == 0.9 and body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert server.requests[1]["response_format"] == {"type": "json_object"}
    assert "response_format" not in server.requests[2]


def even(found: dict) -> int:
    if found["n"] % 2:
        raise ValueError(f"{found['n']} is odd")
    return found["n"]


def test_invalid_answers_are_asked_for_again_with_the_reason() -> None:
    said = iter(["no idea", '{"n": "4"}', '{"n": 5}', 'Well: ```json\n{"n": 6}\n```'])
    chat = EmbeddedChat(lambda request: next(said))
    logged = []
    asked = answers(
        chat, [ask("?", schema=SCHEMA, tag="t")], even, reasks=3, log=lambda *a: logged.append(a)
    )
    ((position, answer),) = asked
    assert position == 0 and isinstance(answer, Answer)
    assert (answer.value, answer.asked) == (6, 4)
    reasons = [reason for _, _, reason in logged]
    assert "no JSON object" in reasons[0] and "'4' is not of type 'integer'" in reasons[1]
    assert reasons[2:] == ["5 is odd", ""]
    last = logged[-1][0]
    assert last.tag == "t" and "5 is odd" in last.messages[-1]["content"]
    assert chat.account.faults == {"invalid_answer": 3}


def test_what_stays_invalid_is_refused_and_what_fails_is_told_apart() -> None:
    def answer(request: ChatRequest) -> str:
        if "fail" in request.messages[0]["content"]:
            raise ValueError("out of order")
        return '{"n": 1}'

    found = dict(answers(EmbeddedChat(answer), [ask("odd"), ask("fail")], even, reasks=1))
    assert found[0] == Refused(reason="1 is odd", text='{"n": 1}', asked=2, failed=False)
    assert found[1] == Refused(reason="out of order", text="", asked=1, failed=True)


def test_texts_lose_their_thinking() -> None:
    said = iter(["<think>1 or 2?</think> The answer is 2", "<think>endless"])
    chat = EmbeddedChat(lambda request: next(said))
    found = dict(answers(chat, [ask("a"), ask("b")], lambda t: t[-1], parse="text", reasks=0))
    assert found[0].value == "2" and "inside <think>" in found[1].reason


def test_json_is_found_among_words() -> None:
    assert json_object('{"a": {"b": 1}} then {"c": "}"} end') == {"c": "}"}
    for text, reason in (("[1]", "no JSON object"), ("{a", "not valid"), ('{"a": NaN}', "NaN")):
        with pytest.raises(ValueError, match=reason):
            json_object(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("lm")
    tiny.write_causal_lm(path, tiny.texts())
    return path


def test_a_local_folder_answers_greedily_whatever_the_batch(folder) -> None:
    requests = [ask("the train " * (i + 1), max_tokens=5) for i in range(5)]
    alone = complete(open_chat(ChatConfig(model=str(folder), batch_size=1)), requests)
    chat = open_chat(ChatConfig(model=str(folder), batch_size=3))
    together = complete(chat, requests)
    assert [r.text for r in together] == [r.text for r in alone]
    assert all(r.completion_tokens == 5 and r.finish == "length" for r in together)
    assert chat.account.answers == 5


def test_a_local_folder_says_what_does_not_fit(folder) -> None:
    chat = open_chat(ChatConfig(model=str(folder)))
    long, short = complete(chat, [ask("a", max_tokens=4096), ask("a", max_tokens=2)])
    assert "more than the 4096 that" in long.error and short.ok


def test_a_model_must_be_named() -> None:
    with pytest.raises(ValueError, match="give the name of an endpoint's model"):
        open_chat(ChatConfig())
    with pytest.raises(ValueError, match="no config.json"):
        open_chat(ChatConfig(model="/nowhere"))


def test_quotes_and_other_scripts_survive_both_ways() -> None:
    text = 'a "quoted" \u092d\u093e\u0930\u0924 \\ line\n'
    with ChatServer(lambda body: body["messages"][0]["content"]) as server:
        assert complete(chat_of(server), [ask(text)])[0].text == text
