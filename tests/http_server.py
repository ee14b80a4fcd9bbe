"""A real HTTP server in a thread: answers like a chat endpoint, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Body = dict[str, Any]

BROKEN_BODIES = {
    "not_json": b"<html>502 Bad Gateway</html>",
    "wrong_keys": b'{"object": "chat.completion", "results": []}',
    "no_text": b'{"choices": [{"message": {"role": "assistant", "content": null}}]}',
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    kind: a status ("429", "500" ...), "cut" (the body ends in its middle), "cut_early" (no answer
    at all), "not_json", "wrong_keys", "no_text", "delay" (then answered), "hang" (delay, then
    cut), "invalid_answer" (a completion whose text is no JSON).
    """

    kind: str
    retry_after: float | str | None = None
    seconds: float = 0.0


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # the default of 5 resets connections that come at once
    daemon_threads = True


class ChatServer:
    """`with ChatServer(answer) as server:` serves at `server.url`.

    answer: the text for a request's body. faults: applied to the first requests in the order in
    which they arrive; None is a request that goes well. fault_of: a fault by the body and how often
    that same body came before, instead.
    """

    def __init__(
        self,
        answer: Callable[[Body], str] = lambda body: "hello",
        faults: Iterable[Fault | None] = (),
        fault_of: Callable[[Body, int], Fault | None] | None = None,
        key: str | None = None,
    ) -> None:
        self.answer = answer
        self.faults = iter(faults)
        self.fault_of = fault_of
        self.key = key
        self.requests: list[Body] = []
        self.started: list[float] = []
        self.faults_done: Counter[str] = Counter()
        self.answered = 0
        self.most_at_once = 0
        self._at_once = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Base address, as clients are given it."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ChatServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(raw)
        with self._lock:
            self.requests.append(body)
            self.started.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            fault = self._next_fault(body, raw.decode())
            if fault is not None:
                self.faults_done[fault.kind] += 1
        try:
            self._answer(handler, body, fault)
        finally:
            with self._lock:
                self._at_once -= 1

    def _next_fault(self, body: Body, raw: str) -> Fault | None:
        if self.fault_of is None:
            return next(self.faults, None)
        before = self._seen[raw]
        self._seen[raw] += 1
        return self.fault_of(body, before)

    def _answer(self, handler: BaseHTTPRequestHandler, body: Body, fault: Fault | None) -> None:
        if self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
            got = handler.headers.get("Authorization")
            send(handler, 401, json.dumps({"error": {"message": f"wrong key {got}"}}).encode())
            return
        kind = fault.kind if fault else ""
        if fault and fault.seconds:
            time.sleep(fault.seconds)
        if kind in ("cut_early", "hang"):
            handler.close_connection = True
        elif kind.isdigit():
            extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            send(
                handler,
                int(kind),
                json.dumps({"error": {"message": f"sent {kind}"}}).encode(),
                extra,
            )
        elif kind in BROKEN_BODIES:
            send(handler, 200, BROKEN_BODIES[kind])
        else:
            text = "I would rather not." if kind == "invalid_answer" else self.answer(body)
            content = json.dumps(completion(body, text)).encode()
            if kind == "cut":
                send(handler, 200, content, length=len(content) + 100)
                handler.close_connection = True
            else:
                send(handler, 200, content)
                if kind != "invalid_answer":
                    with self._lock:
                        self.answered += 1


def completion(body: Body, text: str) -> Body:
    """A chat completion as OpenAI's interface words it."""
    prompt = sum(len(m["content"].split()) for m in body["messages"])
    said = {"role": "assistant", "content": text}
    return {
        "id": "c",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": len(text.split())},
    }


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    headers: dict[str, str] | None = None,
    length: int | None = None,
) -> None:
    """Write an answer; `length` may promise more than there is."""
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)
    handler.wfile.flush()
