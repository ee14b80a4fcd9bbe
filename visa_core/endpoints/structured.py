"""Answers of a wanted form: read from replies, validated, asked for again within bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from visa_core.endpoints.chat import ChatModel, ChatReply, ChatRequest
from visa_core.endpoints.errors import EndpointError

THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)

Log = Callable[[ChatRequest, ChatReply, str], None]
"""Called with every reply and why it was no valid answer ("" when it was)."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What `check` made of a reply, and how often it was asked for."""

    value: Any
    reply: ChatReply
    asked: int


@dataclass(frozen=True, kw_only=True)
class Refused:
    """No valid answer: the reason, and the last text if there was any.

    failed: nothing came back at all, so a later run may ask again; otherwise what came back stayed
    invalid after all re-asks.
    """

    reason: str
    text: str
    asked: int
    failed: bool


def answers(
    chat: ChatModel,
    requests: Iterable[ChatRequest],
    check: Callable[[Any], Any],
    *,
    parse: Literal["json", "text"] = "json",
    reasks: int = 2,
    log: Log | None = None,
) -> Iterator[tuple[int, Answer | Refused]]:
    """(position of the request, its outcome) as they are ready, each position once.

    check: makes the answer of the JSON object (or, with parse="text", of the text without
        <think> parts), or raises ValueError with a sentence that is sent back to the model. A
        request's schema is checked before it.
    reasks: how often an invalid answer is asked for again.
    Raises EndpointError like ChatModel.stream.
    """

    def outcome(reply: ChatReply, schema: dict[str, Any] | None) -> Answer | Refused:
        asked = reply.attempt + 1
        if not reply.ok:
            return Refused(reason=reply.error, text="", asked=asked, failed=True)
        try:
            value = check(read(reply, parse, schema))
        except ValueError as error:
            return Refused(reason=str(error), text=reply.text, asked=asked, failed=False)
        return Answer(value=value, reply=reply, asked=asked)

    schemas: dict[int, dict[str, Any] | None] = {}

    def counted() -> Iterator[ChatRequest]:
        for position, request in enumerate(requests):
            schemas[position] = request.schema
            yield request

    def follow_up(request: ChatRequest, reply: ChatReply) -> ChatRequest | None:
        found = outcome(reply, request.schema)
        reason = "" if isinstance(found, Answer) else found.reason
        if log is not None:
            log(request, reply, reason)
        if isinstance(found, Answer) or found.failed:
            return None
        chat.account.faults["invalid_answer"] += 1
        if request.attempt >= reasks:
            return None
        return request.followed_by(reply.text, correction(reason, parse))

    for position, reply in chat.stream(counted(), follow_up):
        yield position, outcome(reply, schemas.pop(position))


def correction(reason: str, parse: str) -> str:
    """What a model is told about its invalid answer."""
    form = "with the JSON object alone, without any other text" if parse == "json" else "again"
    return f"That answer cannot be used: {reason}. Answer {form}, in the form asked for."


def read(reply: ChatReply, parse: str, schema: dict[str, Any] | None = None) -> Any:
    """The JSON object or the text of a reply. Raises ValueError: why there is none."""
    text = THINKING.sub("", reply.text).strip()
    if "<think>" in text:
        raise ValueError("the reply ends inside <think>; it may need a higher limit of tokens")
    if parse == "text":
        if not text:
            raise ValueError("the reply is empty")
        return text
    try:
        found = json_object(text)
    except ValueError as error:
        if reply.finish == "length":
            raise ValueError(f"{error}; the reply was cut at its limit of tokens") from None
        raise
    if schema is not None and (wrong := schema_error(found, schema)):
        raise ValueError(wrong)
    return found


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, whatever stands around it. Raises ValueError when there is none.

    Where several stand in it the last complete one counts: models that think aloud end with their
    answer.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    found: dict[str, Any] | None = None
    reason = "there is no JSON object in it"
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            reason = f"its JSON is not valid: {error.msg} at character {error.pos + 1}"
            end = at + 1
        except RecursionError:
            raise ValueError("its JSON is nested too deeply") from None
        else:
            found = value
        at = text.find("{", end)
    if found is None:
        raise ValueError(reason)
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"its JSON holds {name}, which is no number")


def schema_error(value: Any, schema: dict[str, Any]) -> str:
    """What is wrong with a value under a JSON schema, in one sentence; "" when nothing is."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value))
    if error is None:
        return ""
    place = ".".join(str(part) for part in error.absolute_path)
    return f"at {place!r}: {error.message[:200]}" if place else error.message[:200]


@lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError:
        raise EndpointError(
            "answers with a JSON schema need the package jsonschema: "
            "pip install 'visa-core[endpoint]'"
        ) from None
    return Draft202012Validator(json.loads(schema))
