"""The protocol of a chat model, and the embedded one, which answers by a function.

`stream` is the one method: requests come from any iterable, replies leave as they are ready, so
that memory stays constant and what is finished can be kept before the next one arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from visa_core.endpoints.account import Account

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One conversation to be continued."""

    messages: tuple[Message, ...]
    temperature: float = 0.0
    """0 is greedy."""
    max_tokens: int = 512
    """Most tokens of the reply."""
    seed: int | None = None
    """Passed to endpoints that take one; a local model samples its batch by it."""
    schema: dict[str, Any] | None = None
    """JSON schema that the reply is asked to follow; who checks it is `structured.answers`."""
    tag: str = ""
    """What the caller calls this conversation, for logs; its follow-ups keep it."""
    attempt: int = 0
    """How often the same thing was asked before, after replies that were no valid answers."""

    def followed_by(self, reply: str, correction: str) -> ChatRequest:
        """The conversation with the reply and what was wrong with it, to be asked again."""
        more = (message("assistant", reply), message("user", correction))
        return replace(self, messages=(*self.messages, *more), attempt=self.attempt + 1)


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """The text that came back, or why none did."""

    text: str = ""
    error: str = ""
    """Why there is no text, after all repetitions; empty when there is one."""
    finish: str = ""
    """"stop", "length" when it was cut, or what the endpoint said."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempt: int = 0
    """The request's `attempt`."""

    @property
    def ok(self) -> bool:
        """Whether there is a text."""
        return not self.error


FollowUp = Callable[[ChatRequest, ChatReply], ChatRequest | None]
"""Looks at a reply: None when it settles the matter, else the next request of the conversation."""


class ChatModel(Protocol):
    """Anything that continues conversations."""

    @property
    def name(self) -> str:
        """Which model answers, as caches and reports call it; never a secret."""
        ...

    @property
    def account(self) -> Account:
        """What was asked so far."""
        ...

    def stream(
        self, requests: Iterable[ChatRequest], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, ChatReply]]:
        """(position of the request, its last reply) as they are ready, in any order, each position
        once.

        Requests are taken from the iterable only as fast as they are worked on. `follow_up` sees
        every reply before it is given out and may ask on. Raises EndpointError when nothing can be
        answered at all.
        """
        ...


def message(role: str, content: str) -> Message:
    """One message of a conversation."""
    return {"role": role, "content": content}


def complete(chat: ChatModel, requests: Sequence[ChatRequest]) -> list[ChatReply]:
    """Replies in the order of the requests."""
    replies: list[ChatReply | None] = [None] * len(requests)
    for position, reply in chat.stream(requests):
        replies[position] = reply
    missing = [position for position, reply in enumerate(replies) if reply is None]
    assert not missing, f"{chat.name} left requests {missing[:5]} without a reply"
    return [reply for reply in replies if reply is not None]


class EmbeddedChat:
    """Answers by a function of the request: for tests, and for rules that stand in for a model.

    The function's ValueError is a failed request, as an endpoint's would be.
    """

    def __init__(
        self, answer: Callable[[ChatRequest], str], name: str = "embedded", cost: int = 0
    ) -> None:
        self.answer = answer
        self.name = name
        self.account = Account(output_price=cost)

    def stream(
        self, requests: Iterable[ChatRequest], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, ChatReply]]:
        """See ChatModel.stream; in order."""
        for position, first in enumerate(requests):
            request: ChatRequest | None = first
            reply = ChatReply(error="never asked")
            while request is not None:
                reply = self._reply(request)
                request = follow_up(request, reply) if follow_up else None
            yield position, reply

    def _reply(self, request: ChatRequest) -> ChatReply:
        self.account.calls += 1
        try:
            text = self.answer(request)
        except ValueError as error:
            self.account.failures += 1
            return ChatReply(error=str(error), attempt=request.attempt)
        words = sum(len(m["content"].split()) for m in request.messages)
        self.account.answers += 1
        self.account.prompt_tokens += words
        self.account.completion_tokens += len(text.split())
        return ChatReply(
            text=text,
            finish="stop",
            prompt_tokens=words,
            completion_tokens=len(text.split()),
            attempt=request.attempt,
        )
