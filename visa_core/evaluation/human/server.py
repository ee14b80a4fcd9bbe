"""A page on this machine where raters fill in a sheet; nothing but the sheet leaves the process."""

from __future__ import annotations

import json
import logging
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from visa_core.evaluation.human.answers import AnswerBook

ADDRESS = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""Names under which the page may be asked for; another one is a page elsewhere that points here."""

LARGEST = 64 * 1024
"""Bytes of the largest request."""

PAGE = Path(__file__).parent / "page.html"

log = logging.getLogger("visa_core.evaluation")


class RatingServer(ThreadingHTTPServer):
    """Serves one sheet on 127.0.0.1; port 0 takes a free one. Close it to let go of the files."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.book = AnswerBook(folder)
        self.page = PAGE.read_text(encoding="utf-8")
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_close(self) -> None:
        """Stop listening and let go of the answers' files."""
        super().server_close()
        self.book.close()


class _Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    timeout = 30

    def do_GET(self) -> None:  # noqa: N802
        self._answer(self._get)

    def do_POST(self) -> None:  # noqa: N802
        self._answer(self._post)

    def _answer(self, handle: Any) -> None:
        try:
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
            if host not in NAMES:
                raise _Refused(HTTPStatus.FORBIDDEN, "this page answers on this machine alone")
            handle()
        except _Refused as refused:
            self._json({"error": str(refused)}, refused.status)
        except ValueError as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _get(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/":
            self._page()
        elif parts.path == "/api/sheet":
            rater = parse_qs(parts.query).get("rater", [""])[0]
            book = self.server.book
            order = book.order(rater)
            sheet = {k: v for k, v in book.sheet.items() if k != "items"}
            items = [book.items[item] for item in order]
            self._json({**sheet, "items": items, "answers": book.answers(rater)})
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing at that address")

    def _post(self) -> None:
        if urlsplit(self.path).path != "/api/answer":
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing at that address")
        # A page elsewhere cannot send this type without asking first, and is not allowed to.
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "answers are JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the answer is too long")
        body = json.loads(self.rfile.read(int(length)))
        if not isinstance(body, dict) or set(body) != {"rater", "item", "answer"}:
            raise ValueError("an answer has the fields rater, item and answer")
        complete = self.server.book.put(str(body["rater"]), str(body["item"]), body["answer"])
        self._json({"saved": True, "complete": complete})

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        body = self.server.page.replace("{nonce}", nonce).encode()
        self._send(body, "text/html; charset=utf-8", HTTPStatus.OK, policy)

    def _json(self, record: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(record, ensure_ascii=False).encode()
        self._send(body, "application/json; charset=utf-8", status, "default-src 'none'")

    def _send(self, body: bytes, kind: str, status: HTTPStatus, policy: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug("%s %s", self.address_string(), format % arguments)
