"""Client of an OpenAI-compatible endpoint: many requests in flight, repeated where they fail.

Requests run on an event loop of the stream's own, driven from the caller's thread, so that callers
stay plain loops and whatever they do between replies needs no locks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from visa_core.endpoints.account import Account
from visa_core.endpoints.chat import ChatReply, ChatRequest, FollowUp
from visa_core.endpoints.config import ChatConfig, is_local
from visa_core.endpoints.errors import EndpointError
from visa_core.endpoints.limits import Pace, retry_after

REPEATED = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""

FATAL = {
    401: "refuses the key: check the environment variable {key_env}",
    403: "refuses access: check the key in the environment variable {key_env} and what it may use",
    404: "does not know that address or model: check base_url and model",
    405: "takes no chat completions at that address: check base_url",
}
"""Statuses that every request would get."""

log = logging.getLogger("visa_core.endpoints")


@dataclass(frozen=True)
class _Fault(Exception):
    """One failed try: its kind for the account, what was said, and how long to wait if told."""

    kind: str
    detail: str
    wait: float | None = None
    repeat: bool = True


class EndpointChat:
    """A ChatModel over HTTP. Raises EndpointError when its key is missing."""

    def __init__(self, config: ChatConfig) -> None:
        self.config = config
        self.name = f"{config.model}@{config.base_url.rstrip('/')}"
        self.account = Account(input_price=config.input_price, output_price=config.output_price)
        self._http = _library()
        self._key = _key(config)
        self._url = config.base_url.rstrip("/") + "/chat/completions"
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute)
        self._jitter = random.Random(0)
        self._failed_in_a_row = 0

    def stream(
        self, requests: Iterable[ChatRequest], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, ChatReply]]:
        """See ChatModel.stream.

        What is in flight when the endpoint turns out to be unusable is still waited for and given
        out before EndpointError is raised. Close the iterator to drop what is in flight.
        """
        _refuse_running_loop()
        loop = asyncio.new_event_loop()
        session = self._session()
        tasks: set[asyncio.Task] = set()
        try:
            yield from self._drive(loop, session, tasks, enumerate(requests), follow_up)
        finally:
            loop.run_until_complete(_cancelled(tasks))
            loop.run_until_complete(session.aclose())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _drive(
        self,
        loop: asyncio.AbstractEventLoop,
        session: Any,
        tasks: set[asyncio.Task],
        source: Iterator[tuple[int, ChatRequest]],
        follow_up: FollowUp | None,
    ) -> Iterator[tuple[int, ChatReply]]:
        stopped: EndpointError | None = None
        exhausted = False
        while True:
            while not exhausted and stopped is None and len(tasks) < self.config.concurrency:
                item = next(source, None)
                exhausted = item is None
                if item is not None:
                    tasks.add(loop.create_task(self._settle(session, *item, follow_up)))
            if not tasks:
                break
            waiting = asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done, _ = loop.run_until_complete(waiting)
            for task in done:
                tasks.discard(task)
                error = task.exception()
                if isinstance(error, EndpointError):
                    stopped = stopped or error
                else:
                    yield task.result()
        if stopped is not None:
            raise stopped

    async def _settle(
        self, session: Any, position: int, request: ChatRequest, follow_up: FollowUp | None
    ) -> tuple[int, ChatReply]:
        while True:
            reply = await self.ask(session, request)
            following = follow_up(request, reply) if follow_up else None
            if following is None:
                return position, reply
            request = following

    async def ask(self, session: Any, request: ChatRequest) -> ChatReply:
        """One request with its repetitions. The reply has an error when none of them was answered.

        Raises EndpointError when no request would be.
        """
        body = self._body(request)
        fault = _Fault("never asked", "never asked")
        for attempt in range(self.config.retries + 1):
            self._check_budget()
            await self._pace.turn()
            self.account.calls += 1
            try:
                reply = await self._post(session, body)
            except _Fault as found:
                fault = found
                self.account.faults[fault.kind] += 1
                if not fault.repeat or attempt == self.config.retries:
                    break
                await self._back_off(fault, attempt)
                continue
            self._failed_in_a_row = 0
            return replace(reply, attempt=request.attempt)
        self.account.failures += 1
        self._count_failure(fault)
        return ChatReply(error=f"{fault.kind}: {fault.detail}", attempt=request.attempt)

    async def _post(self, session: Any, body: dict[str, Any]) -> ChatReply:
        http = self._http
        try:
            async with asyncio.timeout(self.config.timeout):
                response = await session.post(self._url, json=body)
        except (TimeoutError, http.TimeoutException):
            detail = f"no whole reply within {self.config.timeout:g} seconds"
            raise _Fault("timeout", detail) from None
        except http.ConnectError as error:
            raise _Fault("no connection", self._clean(str(error))) from None
        except (http.TransportError, http.DecodingError) as error:
            raise _Fault("cut", self._clean(str(error) or type(error).__name__)) from None
        if response.status_code != 200:
            self._raise_status(response)
        return self._read(response.content)

    def _raise_status(self, response: Any) -> None:
        status = response.status_code
        detail = self._clean(_said(response.content))
        if status in FATAL or 300 <= status < 400:
            self.account.faults[str(status)] += 1
            advice = FATAL.get(status, "sends requests elsewhere: check base_url")
            sentence = advice.format(key_env=self.config.api_key_env or "(none: api_key_env)")
            raise EndpointError(f"{self.name} {sentence} (HTTP {status}: {detail})")
        repeat = status in REPEATED or status >= 500
        wait = retry_after(response.headers) if repeat else None
        raise _Fault(str(status), detail, wait=wait, repeat=repeat)

    def _read(self, content: bytes) -> ChatReply:
        """The reply in a body. Raises _Fault when it is no chat completion."""
        try:
            data = json.loads(content)
        except (ValueError, RecursionError):
            raise _Fault("not_json", f"the body is no JSON: {content[:80]!r}") from None
        try:
            choice = data["choices"][0]
            said = choice["message"]
            text = said.get("content")
            refusal = said.get("refusal")
            usage = data.get("usage") or {}
            prompt, completion = (
                int(usage.get(f"{part}_tokens") or 0) for part in ("prompt", "completion")
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            kind = ", ".join(data) if isinstance(data, dict) else type(data).__name__
            raise _Fault("wrong_keys", f"no chat completion in the body ({kind[:80]})") from None
        self.account.prompt_tokens += prompt
        self.account.completion_tokens += completion
        self._pace.book(prompt + completion)
        if not isinstance(text, str):
            if isinstance(refusal, str) and refusal:
                raise _Fault("refusal", self._clean(refusal), repeat=False)
            raise _Fault("wrong_keys", "the message has no text")
        self.account.answers += 1
        return ChatReply(
            text=text,
            finish=str(choice.get("finish_reason") or ""),
            prompt_tokens=prompt,
            completion_tokens=completion,
        )

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": list(request.messages),
            "temperature": request.temperature,
            self.config.token_field: request.max_tokens,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.schema is not None and self.config.structured == "schema":
            wanted = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif request.schema is not None and self.config.structured == "object":
            body["response_format"] = {"type": "json_object"}
        return body | self.config.extra_fields()

    async def _back_off(self, fault: _Fault, attempt: int) -> None:
        most = self.config.backoff_most
        if fault.wait is not None:
            wait = min(most, fault.wait)
            self._pace.pause(wait)
        else:
            wait = min(most, self.config.backoff * 2**attempt) * self._jitter.uniform(0.5, 1.0)
        log.debug("%s: %s; again in %.2f s", self.name, fault.kind, wait)
        await asyncio.sleep(wait)

    def _count_failure(self, fault: _Fault) -> None:
        self._failed_in_a_row = self._failed_in_a_row + 1 if fault.repeat else 0
        if self._failed_in_a_row >= self.config.give_up_after:
            raise EndpointError(
                f"{self.name}: {self._failed_in_a_row} requests in a row failed for good, the last "
                f"with {fault.kind}: {fault.detail}; run again once the endpoint answers"
            )

    def _check_budget(self) -> None:
        limit = self.config.cost_limit
        if limit and self.account.cost >= limit:
            raise EndpointError(
                f"{self.name}: the account stands at {self.account.cost:.4f}, past cost_limit "
                f"{limit:g}; run again with a higher one to go on"
            )

    def _session(self) -> Any:
        http, config = self._http, self.config
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = http.Limits(
            max_connections=config.concurrency, max_keepalive_connections=config.concurrency
        )
        return http.AsyncClient(headers=headers, timeout=config.timeout, limits=limits)

    def _clean(self, text: str) -> str:
        """What an endpoint said, short, on one line, and without the key that some repeat."""
        text = " ".join(text.split())
        if self._key:
            text = text.replace(self._key, "[key]")
        return text[:200]


async def _cancelled(tasks: set[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _library() -> Any:
    try:
        import httpx2
    except ModuleNotFoundError:
        raise EndpointError(
            "an endpoint needs the package httpx2: pip install 'visa-core[endpoint]'"
        ) from None
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # else a line for each request
    return httpx2


def _key(config: ChatConfig) -> str:
    key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
    if config.api_key_env and not key and not is_local(config.base_url):
        raise EndpointError(
            f"{config.base_url} needs a key: set the environment variable {config.api_key_env}, or "
            "name another one with api_key_env (empty for an endpoint without keys)"
        )
    return key.strip()


def _said(content: bytes) -> str:
    """The message in an error's body, or its beginning."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return content[:200].decode("utf-8", "replace")


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise EndpointError(
        "stream() drives an event loop of its own and one is running already, as in a notebook: "
        "call it from a thread, or await EndpointChat.ask"
    )
