"""The benches of new values run and name what they compare; their data is what they say."""

from __future__ import annotations

import json
from pathlib import Path

from bench import extend, extend_rewriter
from visa_core.data.embedded.further import FOURTEEN, FURTHER_STEMS
from visa_core.data.schema import read_jsonl_strict
from visa_core.types import RewriteExample


def test_a_small_run(tmp_path: Path) -> None:
    path = extend.run(tmp_path, 0, 64, 32, held_rows=48)
    record = json.loads(path.read_text())
    ways = ["before", "frozen", "rehearsal", "plain", "together"]
    assert list(record["measured"]) == ways
    assert set(record["new"]) == set(FURTHER_STEMS)
    shown = path.with_suffix(".md").read_text()
    assert "trained on all values at once" in shown
    assert extend.run(tmp_path, 0, 64, 32, held_rows=48) == path


def test_tasks_of_old_and_new_values_do_not_mix(tmp_path: Path) -> None:
    extend_rewriter.write_data(tmp_path, 40)
    old, new, mixed = (
        {
            name
            for row in read_jsonl_strict(tmp_path / f"{kind}.jsonl", RewriteExample, space=FOURTEEN)
            for name in row.target
        }
        for kind in ("old", "new", "mixed")
    )
    assert not old & set(FURTHER_STEMS) and new == set(FURTHER_STEMS)
    assert mixed & set(FURTHER_STEMS) and mixed - set(FURTHER_STEMS)
