"""`python -m bench.sync` on a tiny model: three ways, checked before they are timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import sync
from tests.vllm_build import attach, needs_vllm

TINY = ["--hidden", "64", "--layers", "1", "--heads", "2", "--vocabulary", "150", "--threads", "1"]


@needs_vllm
@pytest.mark.slow
def test_all_ways_are_timed_and_only_views_move_nothing(tmp_path: Path) -> None:
    attach()
    assert sync.main([*TINY, "--rounds", "2", "--kv-gib", "0.05", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "sync.json").read_text())
    ways = result["ways"]
    assert ways["views"]["bytes"] == 0 and ways["views"]["times_views"] == 1
    # embedding, q, k, v, o, gate, up and down, two norms of the layer, of the heads, the last one
    elements = 150 * 64 + 64 * (64 + 32 + 32 + 64) + 3 * 64 * 192 + 2 * 64 + 2 * 32 + 64
    for name in ways.keys() - {"views"}:
        assert ways[name]["bytes"] == 4 * elements and ways[name]["median_s"] > 0
    assert {"views", "buckets"} <= ways.keys()
    assert ("trl" in ways) == (not result["missing"])


def test_no_time_where_the_weights_are_wrong() -> None:
    rows: dict[str, dict[str, Any]] = {
        "views": {"bytes": 0, "seconds": [1.0, 2.0, 4.0], "correct": True},
        "trl": {"bytes": 8, "seconds": [10.0, 40.0, 20.0], "correct": True},
        "buckets": {"bytes": 8, "seconds": [1.0, 1.0, 1.0], "correct": False},
    }
    sync.finish(rows)
    assert rows["trl"]["times_views"] == 10 and rows["trl"]["median_s"] == 20
    assert "median_s" not in rows["buckets"]
    assert "left wrong weights: no time is given" in sync.line("buckets", rows["buckets"])
    assert "10.0 x views" in sync.line("trl", rows["trl"])
