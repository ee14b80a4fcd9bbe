"""`kill -9` in the middle of annotation: the same command goes on, to the same files, and no answer
that was kept is paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.alignment_file import write_alignment
from tests.http_server import ChatServer, Fault
from visa_core.data.annotate.annotator import comparison_key
from visa_core.data.annotate.make import make_annotator
from visa_core.data.construction.comparison import Intake
from visa_core.data.construction.config import AnnotatorConfig
from visa_core.data.construction.readers import read_comparisons
from visa_core.endpoints import ChatConfig
from visa_core.values import SCHWARTZ

DELAY = 0.01
DIFFER = {"answers.sqlite", "answers.sqlite-wal", "answers.sqlite-shm", "raw.jsonl", "run.json"}
"""Files that tell how the answers came, which a kill changes."""


def opinion(body: dict[str, Any]) -> str:
    """Levels of both responses by the hash of their texts, on the grid."""
    asked = body["messages"][1]["content"].partition("Response A:\n")[2]
    first, _, rest = asked.partition("\n\nResponse B:\n")
    second = rest.partition("\n\nPreferred:")[0]

    def levels(text: str) -> dict[str, float]:
        digest = hashlib.blake2b(text.encode(), digest_size=SCHWARTZ.size).digest()
        return {name: (b % 5 - 2) / 2 for name, b in zip(SCHWARTZ.names, digest, strict=True)}

    return json.dumps({"reasoning": "", "A": levels(first), "B": levels(second)})


FORKS = """
import json, os, sys
from visa_core import cli
import datasketch, httpx2, jsonschema, pyarrow.parquet, tqdm
import visa_core.commands.data, visa_core.data.annotate.chat, visa_core.endpoints.client
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        os._exit(cli.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Reads commands and runs each in a process of its own; what is imported is imported once."""


class Commands:
    """`visa` in processes that can be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: list[str]) -> int:
        """The process's id."""
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        """How the process that was started last ended."""
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    forks = Commands()
    yield forks
    forks.process.stdin.close()
    forks.process.wait(20)


def command(spec: str, out: Path, url: str, n: int) -> list[str]:
    options = {"model": "m", "base-url": url, "concurrency": 4, "backoff": 0.002}
    flags = [f"--annotator.chat.{name}={value}" for name, value in options.items()]
    flags += ["--annotator.kind=chat", f"--n={n}", "--triplets.validation=0.2", f"--out={out}"]
    return ["data", "build", f"--data={spec}", *flags]


def keys_by_text(spec: str, url: str, n: int) -> dict[str, bytes]:
    """What each comparison's request says -> its key in the cache."""
    config = AnnotatorConfig(kind="chat", chat=ChatConfig(model="m", base_url=url))
    annotator: Any = make_annotator(config, SCHWARTZ)
    found = {}
    for number, comparison in enumerate(read_comparisons([spec], Intake())):
        if number == n:
            break
        key = comparison_key(annotator.name, comparison)
        found[annotator.request(key, comparison).messages[1]["content"]] = key
    return found


def cached(out: Path) -> set[bytes]:
    with sqlite3.connect(out / "answers.sqlite") as db:
        return {key for (key,) in db.execute("SELECT key FROM outcome")}


def files(out: Path) -> dict[str, bytes]:
    paths = [p for p in out.rglob("*") if p.is_file() and p.name not in DIFFER]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


def kill_after(server: ChatServer, commands: Commands, arguments: list[str], answers: int) -> None:
    child = commands.start(arguments)
    give_up = time.monotonic() + 120
    while server.answered < answers:
        assert time.monotonic() < give_up
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert commands.status() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ca", "hh"])
def test_killed_three_times(
    kind: str, tmp_path: Path, commands: Commands, request: pytest.FixtureRequest
) -> None:
    n = 120
    if kind == "hh":
        spec = f"hh:{request.getfixturevalue('shared_data') / 'hh_helpful' / 'test.jsonl'}"
    else:
        write_alignment(tmp_path / "ca.csv", n, seed=5)
        spec = f"ca:{tmp_path / 'ca.csv'}"
    points = sorted(random.Random(f"points of {kind}").sample(range(8, n - 20), 3))
    with ChatServer(opinion, fault_of=lambda *_: Fault("delay", seconds=DELAY)) as server:
        keys = keys_by_text(spec, server.url, n)
        out = tmp_path / "killed"
        arguments = command(spec, out, server.url, n)
        for point in points:
            known = cached(out) if out.exists() else set()
            before = len(server.requests)
            kill_after(server, commands, arguments, point)
            asked = [keys[body["messages"][1]["content"]] for body in server.requests[before:]]
            assert not known & set(asked)  # nothing that was kept is paid for again
        assert not (out / "report.json").exists()
        before, known = len(server.requests), cached(out)
        assert len(known) >= points[-1] - 3 * 4  # at most what was in flight is lost
        commands.start(arguments)
        assert commands.status() == 0
        asked = [keys[body["messages"][1]["content"]] for body in server.requests[before:]]
        assert not known & set(asked) and known | set(asked) == set(keys.values())
        everything = Counter(body["messages"][1]["content"] for body in server.requests)
        assert set(everything) == set(keys) and everything.total() <= len(keys) + 3 * 4
        # An unbroken run on the same server, for what the files should be.
        whole = tmp_path / "whole"
        commands.start(command(spec, whole, server.url, n))
        assert commands.status() == 0
    assert files(out) == files(whole) and len(files(out)) >= 11
    raw = [json.loads(line)["key"] for line in (out / "raw.jsonl").open()]
    assert Counter(raw).most_common(1)[0][1] == 1 and len(raw) == len(keys)
    report = json.loads((out / "report.json").read_text())
    assert report["stages"]["comparisons annotated"] == n
