"""Annotation by Ray's workers: the same files as without, and each comparison asked for once.

Ray is a large optional extra; without it these tests are skipped (`pip install 'visa-core[ray]'`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http_server import ChatServer, Fault
from tests.preferences import marked_pairs, reading
from tests.tiny import write_lines
from visa_core.data.construction.build import build
from visa_core.data.construction.config import AnnotatorConfig, BuildConfig
from visa_core.data.schema import DataError
from visa_core.endpoints import ChatConfig, EndpointError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra 'ray')"
)
APART = {"answers.sqlite", "raw.jsonl", "run.json"}


@pytest.fixture(scope="module")
def cluster(repo: Path) -> Iterator[None]:
    """A cluster of one machine whose workers find this tree."""
    import ray

    paths = os.pathsep.join([str(repo), str(repo / "kernels"), str(repo / "trainers")])
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


def files(out: Path) -> dict[str, bytes]:
    paths = [p for p in out.rglob("*") if p.is_file() and p.name not in APART]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


@needs_ray
@pytest.mark.slow
def test_the_lexicon_gives_the_same_files(tmp_path: Path, cluster: None) -> None:
    config = BuildConfig(data=("embedded:200",), out=tmp_path / "plain")
    build(config)
    engine = AnnotatorConfig(engine="ray")
    build(dataclasses.replace(config, out=tmp_path / "ray", annotator=engine))
    assert files(tmp_path / "ray") == files(tmp_path / "plain")


@needs_ray
@pytest.mark.slow
def test_an_endpoint_is_asked_once_and_its_faults_are_counted(
    tmp_path: Path, cluster: None
) -> None:
    data = write_lines(tmp_path / "p.jsonl", [*marked_pairs(150), *marked_pairs(10)])

    def fault(body: dict, before: int) -> Fault | None:
        number = int(body["messages"][1]["content"].split("question ")[1].split()[0])
        again = before or len(body["messages"]) > 2
        kind = ("500", "cut", "invalid_answer")[number % 3]
        return None if again or number % 2 == 0 else Fault(kind)

    with ChatServer(reading, fault_of=fault) as server:
        chat = ChatConfig(model="m", base_url=server.url, backoff=0.01, timeout=5)
        annotator = AnnotatorConfig(kind="chat", chat=chat, engine="ray")
        config = BuildConfig(data=(f"jsonl:{data}",), out=tmp_path / "ray", annotator=annotator)
        report = build(config)
        assert server.answered == 150
        assert report["run"]["account"]["faults"] == {"500": 25, "cut": 25, "invalid_answer": 25}
        assert report["run"]["account"]["calls"] == len(server.requests) == 225
        assert report["run"]["answers"]["answers asked for"] == 150
        raw = [json.loads(line)["key"] for line in (tmp_path / "ray" / "raw.jsonl").open()]
        assert len(raw) == 175 and len(set(raw)) == 150
        plain = dataclasses.replace(annotator, engine="local")
        build(dataclasses.replace(config, out=tmp_path / "plain", annotator=plain))
    assert files(tmp_path / "ray") == files(tmp_path / "plain")


@needs_ray
@pytest.mark.slow
def test_a_dead_endpoint_stops_the_build(tmp_path: Path, cluster: None) -> None:
    data = write_lines(tmp_path / "p.jsonl", marked_pairs(80))
    with ChatServer(reading, fault_of=lambda *_: Fault("500")) as server:
        chat = ChatConfig(
            model="m", base_url=server.url, backoff=0.01, retries=0, give_up_after=2, concurrency=1
        )
        annotator = AnnotatorConfig(kind="chat", chat=chat, engine="ray", actors=1)
        config = BuildConfig(data=(f"jsonl:{data}",), out=tmp_path / "o", annotator=annotator)
        with pytest.raises(EndpointError, match="2 requests in a row failed for good"):
            build(config)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    config = BuildConfig(
        data=("embedded:3",), out=tmp_path / "o", annotator=AnnotatorConfig(engine="ray")
    )
    with pytest.raises(DataError, match=r"needs the package ray: pip install 'visa-core\[ray\]'"):
        build(config)
