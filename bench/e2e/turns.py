"""Steps on demand: a driver lets the processes of several providers step one after the other.

A shared machine is faster in one minute than in the next. With steps in turns, A B A B ..., each
ratio comes from neighbouring steps.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
STEP, END = "step", "end"


class Turns:
    """The worker's side: waits for a line, answers with one of JSON."""

    def __init__(self, asked: TextIO, answers: TextIO) -> None:
        self.asked, self.answers = asked, answers

    def another(self) -> bool:
        """Wait; whether one more step is wanted."""
        return self.asked.readline().strip() == STEP

    def answer(self, **found: Any) -> None:
        """One line for the driver."""
        self.answers.write(json.dumps(found) + "\n")
        self.answers.flush()


class ProviderFailed(RuntimeError):
    """A provider's process ended before its answer; the message is what it said last."""


class Worker:
    """The driver's side: a process that is ready to step once `start` has returned.

    limit: seconds after which it is killed, so that no provider takes the time of the others.
    """

    def __init__(self, asked: dict[str, Any], limit: float | None = None) -> None:
        self.name: str = asked["provider"]
        self.limit, self.expired = limit, False
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.e2e.worker", json.dumps(asked)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        if limit is not None:
            self.timer = threading.Timer(limit, self._expire)
            self.timer.daemon = True
            self.timer.start()

    def start(self) -> None:
        """Wait until everything is imported and loaded."""
        self._answer()

    def step(self) -> dict[str, Any]:
        """One step: seconds by phase and sampled tokens."""
        self._say(STEP)
        return self._answer()

    def end(self) -> dict[str, Any]:
        """The process's peak memory; it ends."""
        self._say(END)
        found = self._answer()
        self.process.wait()
        return found

    def kill(self) -> None:
        """End it in any state."""
        if self.limit is not None:
            self.timer.cancel()
        self.process.kill()
        self.process.wait()

    def _expire(self) -> None:
        self.expired = True
        self.process.kill()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer is missing then, and tells why

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise ProviderFailed(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        if self.expired:
            return f"stopped after {self.limit:.0f} s"
        self.errors.seek(0)
        return f"ended with status {self.process.returncode}: {last_error(self.errors.read())}"


def last_error(text: str) -> str:
    """What a traceback says in the end, or the last line; at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return " ".join(lines[raised[-1] if raised else -1 :])[:300] or "nothing"
