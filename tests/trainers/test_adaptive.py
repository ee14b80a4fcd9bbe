"""The adaptive value search as a user runs it: embedded, on real formats, killed, and misused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests import tiny
from tests.core.test_pairwise import small_set
from tests.core.test_search_reward import WORDS
from tests.http_server import ChatServer
from visa_core import cli
from visa_core.config.search import AdaptiveConfig, SearchConfig, UpdateConfig
from visa_core.config.values import ProtocolConfig
from visa_core.endpoints import ChatConfig
from visa_trainers.adaptive import run

SIZES = ["--train-rows", "6", "--capability-rows", "6", "--probe-rows", "4", "--seeds", "1"]
LOOPS = ["--iterations", "4", "--candidates", "3", "--steps", "2", "--batch-size", "3"]


def embedded(system: Path, out: Path, *more: object) -> list[str]:
    command = ["search", "--embedded", "--system", system, "--out", out, "--device", "cpu"]
    return [str(part) for part in [*command, *SIZES, *LOOPS, "--lr", "0.02", *more]]


def figures(out: Path) -> dict:
    """The report without what tells the time and the place."""
    record = json.loads((out / "search.json").read_text())
    return {k: v for k, v in record.items() if k not in ("seconds", "config")}


def write_math(path: Path, n: int) -> Path:
    rows = [
        {
            "problem": f"What is {i} plus 3 ?",
            "solution": f"{i} plus 3 is $\\boxed{{{i + 3}}}$.",
            "answer": str(i + 3),
            "subject": "Algebra",
            "level": 1,
        }
        for i in range(n)
    ]
    return tiny.write_lines(path, rows)


def write_mmlu(folder: Path, n: int) -> Path:
    folder.mkdir()
    for part, count in (("dev", 2), ("test", n)):
        with (folder / f"sums_{part}.csv").open("w", newline="") as file:
            rows = [[f"What is {i} plus 1 ?", i, i + 1, i + 2, 7, "B"] for i in range(count)]
            csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lm") / "base"
    tiny.write_causal_lm(place, WORDS)
    return place


@pytest.fixture(scope="module")
def smoke_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from visa_trainers.embedded_base import SMOKE, train_base

    return train_base(tmp_path_factory.mktemp("smoke") / "base", SMOKE)


def with_base(out: Path, smoke_base: Path) -> Path:
    """A folder in which the embedded base lies already."""
    out.mkdir()
    (out / "base").symlink_to(smoke_base)
    return out


@pytest.mark.slow
def test_embedded_writes_the_whole_report(
    small_system: Path, smoke_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = with_base(tmp_path / "out", smoke_base)
    assert cli.main(embedded(small_system, out, "--seeds", 2)) == 0
    said = capsys.readouterr().out
    assert "VISA" in said and "search.md" in said and "pareto.png" in said
    record = json.loads((out / "search.json").read_text())
    assert record["base_unchanged"] is True and "reconstruction" in record["rule"]
    table = record["table"]
    assert list(table) == ["base", "sft", "visa", "neutral", "profile"]
    assert table["base"]["drift"]["mean"] == 0 and table["sft"]["seeds"] == 2
    by_hand = [arms["visa"]["drift"] for arms in record["arms"]]
    assert table["visa"]["drift"]["mean"] == pytest.approx(sum(by_hand) / 2)
    assert len(record["searches"]) == 2 and len(record["searches"][0]) == 4
    rewards = [r for e in record["searches"][0] for r in e["records"]]
    assert all(r["reward"] == pytest.approx(r["capability"] - r["drift"]) for r in rewards)
    front = record["pareto"]
    assert front == sorted(front, key=lambda p: p["drift"])
    assert all(a["capability"] < b["capability"] for a, b in zip(front, front[1:], strict=False))
    text = (out / "search.md").read_text()
    assert "| SFT |" in text and "95 % interval" in text and "as they were" in text
    for picture in ("path.png", "pareto.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in (out / "rewritten.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and set(rows[0]) == {"query", "response", "source"}


@pytest.mark.slow
def test_killed_in_an_iteration_and_resumed(
    repo: Path, small_system: Path, smoke_base: Path, tmp_path: Path
) -> None:
    """SIGKILL in the first and in a later iteration; the report is the uninterrupted one's."""
    whole = with_base(tmp_path / "whole", smoke_base)
    assert cli.main(embedded(small_system, whole)) == 0
    out = with_base(tmp_path / "killed", smoke_base)
    paths = os.pathsep.join(str(repo / part) for part in ("", "kernels", "trainers"))
    state = out / "states" / "search-0.json"
    for done in (0, 2):
        process = subprocess.Popen(
            [sys.executable, "-m", "visa_core.cli", *embedded(small_system, out)],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        limit = time.monotonic() + 200
        while not state.exists() or len(json.loads(state.read_text())["iterations"]) < done:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < limit
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL and not (out / "search.json").exists()
    assert cli.main(embedded(small_system, out)) == 0
    assert figures(out) == figures(whole)
    assert state.read_bytes() == (whole / "states" / "search-0.json").read_bytes()


def by_checksum(body: dict) -> str:
    """A judge without sense that still tells any two texts apart."""
    first, second = body["messages"][-1]["content"].split("Response 1:")[1].split("Response 2:")
    first, second = (zlib.crc32(part.strip()[:20].encode()) for part in (first, second))
    return "1" if first < second else "2"


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["mmlu", "math500"])
def test_real_formats_end_to_end(
    small_system: Path, base: Path, tmp_path: Path, capability: str
) -> None:
    """MATH-500 fine-tuning of any local folder; base and rewriter have different tokenizers. One
    drift is the detector's, the other a judge's behind an endpoint.
    """
    math = write_math(tmp_path / "math.jsonl", 18)
    able = math if capability == "math500" else write_mmlu(tmp_path / "mmlu", 12)
    config = AdaptiveConfig(
        out=tmp_path / "out",
        system=small_system,
        base=base,
        task=f"math500:{math}",
        capability=f"{capability}:{able}",
        seeds=1,
        search=SearchConfig(candidates=2, iterations=2, sigma=0.6),
        update=UpdateConfig(steps=2, batch_size=2, lr=0.05),
        train_rows=6,
        capability_rows=4,
        shots=2,
        max_tokens=6,
        probe_rows=3,
        device="cpu",
    )
    with ChatServer(answer=by_checksum) as server:
        if capability == "math500":
            config = replace(
                config,
                drift="judged",
                judge=ChatConfig(model="checksum", base_url=server.url),
                protocol=ProtocolConfig(answers=1, max_tokens=6),
                questions=small_set(tmp_path, 8),
            )
        record = json.loads(run(config).read_text())
    assert record["base_unchanged"] is True
    assert ("judged by checksum" in record["what"]["drift"]) == (capability == "math500")
    sft = record["arms"][0]["sft"]
    assert sft["drift"] > 0 and 0 <= sft["capability"] <= 1
    assert all(0 <= r["cut"] <= 1 for e in record["searches"][0] for r in e["records"])


def refused(capsys: pytest.CaptureFixture[str], command: list[object]) -> str:
    """What a command that ends with status 2 says."""
    try:
        status = cli.main([str(part) for part in command])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_wrong_options_are_told(
    capsys: pytest.CaptureFixture[str], small_system: Path, tmp_path: Path
) -> None:
    command = embedded(small_system, tmp_path / "out")
    assert "measured against the others" in refused(capsys, [*command, "--candidates", 1])
    assert "--embedded brings its own --base" in refused(capsys, [*command, "--base", tmp_path])
    assert "give --system, or --embedded" in refused(capsys, ["search"])
    assert "--embedded reads profiles" in refused(capsys, [*command, "--drift", "judged"])
    files = [
        "search",
        "--system",
        "s",
        "--base",
        "b",
        "--task",
        "jsonl:t",
        "--capability",
        "mmlu:m",
    ]
    assert "--judge.model: give both" in refused(capsys, [*files, "--drift", "judged"])
    assert "--lr must be above 0" in refused(capsys, [*command, "--lr", "-1"])


def test_folders_and_files_that_do_not_fit_are_told(
    capsys: pytest.CaptureFixture[str], small_system: Path, base: Path, tmp_path: Path
) -> None:
    math = write_math(tmp_path / "math.jsonl", 3)
    rest = ["--system", small_system, "--base", base, "--out", tmp_path / "out", "--device", "cpu"]

    def said(task: str, capability: str, *more: object) -> str:
        command = ["search", "--task", task, "--capability", capability, *rest, *SIZES, *more]
        return refused(capsys, command)

    assert "--task must be math500:PATH or jsonl:PATH" in said("maths", f"math500:{math}")
    assert "no problem is left beside" in said(f"math500:{math}", f"math500:{math}")
    bad = tiny.write_lines(
        tmp_path / "bad.jsonl", [{"query": "a", "response": "b"}, {"query": "c"}]
    )
    assert "bad.jsonl:2: not a row with query and response" in said(
        f"jsonl:{bad}", f"math500:{bad}"
    )
    (tmp_path / "file").write_text("")
    unwritable = ["--out", tmp_path / "file" / "out"]
    both = (f"math500:{math}", f"math500:{write_math(tmp_path / 'more.jsonl', 9)}")
    assert "cannot open the cache of rewrites" in said(*both, *unwritable)
    assert "is no system folder" in said(*both, "--system", tmp_path)
    assert "is not a model folder" in said(*both, "--base", tmp_path / "none")


def test_other_settings_do_not_go_on(
    capsys: pytest.CaptureFixture[str], small_system: Path, smoke_base: Path, tmp_path: Path
) -> None:
    out = with_base(tmp_path / "out", smoke_base)
    command = embedded(small_system, out, "--iterations", 1)
    assert cli.main(command) == 0
    capsys.readouterr()
    said = refused(capsys, [*command, "--drift-weight", 3])
    assert "search-0.json holds a search with other settings" in said and "drift_weight" in said


def test_equal_rewards_and_diverged_updates_are_told(
    capsys: pytest.CaptureFixture[str], small_system: Path, smoke_base: Path, tmp_path: Path
) -> None:
    flat = embedded(small_system, with_base(tmp_path / "flat", smoke_base), "--sigma", "0.001")
    assert "all 3 candidates have the reward" in refused(capsys, flat)
    wild = embedded(small_system, with_base(tmp_path / "wild", smoke_base), "--lr", "1e30")
    assert "the reward of candidate" in refused(capsys, wild)
