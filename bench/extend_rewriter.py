"""Four further values taught to the embedded rewriter: `python -m bench.extend_rewriter --out O`.

Starts from a quickstart's folder (--system): its GRPO model is widened, then fine-tuned on tasks of
the new values with rehearsal of old ones (all weights, or an adapter and the new words), and on the
new tasks alone. Beside them a rewriter that learns all fourteen at once, from the quickstart's
base. Scores are the corpus' own truth.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import machine
from visa_core.config import SFTConfig
from visa_core.config.extend import ExtendRewriterConfig
from visa_core.config.lora import LoraSettings
from visa_core.data import embedded
from visa_core.data.embedded import further, truth
from visa_core.data.schema import write_jsonl
from visa_core.models.rewriter import Rewriter
from visa_core.training.run import RunFinished
from visa_core.training.targets import recorded_targets
from visa_core.types import RewriteExample
from visa_trainers import recipe, sft
from visa_trainers.extend_rewriter import widen

TITLES = {
    "before": "before",
    "rehearsal": "widened, new and old tasks",
    "lora": "widened, an adapter and the new words, new and old tasks",
    "apart": "widened, tasks of new or old values but none of both",
    "plain": "widened, new tasks alone",
    "together": "base, all fourteen at once",
}


def write_data(folder: Path, rows: int) -> None:
    """Tasks: of old values, of new ones, of all."""
    folder.mkdir(parents=True, exist_ok=True)
    further.FOURTEEN.save(folder / "space.json")
    sets = {
        "old": embedded.rewrites(rows, 70),
        "new": further.rewrites(rows, 70, only_new=True),
        "mixed": further.rewrites(rows, 71),
        "held_old": embedded.rewrites(250, 72),
        "held_new": further.rewrites(250, 72, only_new=True),
    }
    for name, tasks in sets.items():
        write_jsonl(folder / f"{name}.jsonl", tasks)


def trained_part(start: Path, lora: bool) -> dict[str, Any]:
    """Settings of what is trained: an adapter and the new words, or all weights by Muon."""
    if not lora:
        return {"optimizer": "muon", "lr": 2e-3, "muon_lr": 5e-3}
    size = len(Rewriter.from_pretrained(start).model.get_input_embeddings().weight)
    return {"lora": LoraSettings(rank=16, alpha=32.0, new_tokens_from=size), "lr": 5e-3}


def tuned(
    start: Path, out: Path, data: Path, names: tuple[str, ...], steps: int, lora: bool = False
) -> Path:
    """Widen and fine-tune; what is there is left as it is."""
    specs = tuple(f"jsonl:{data / name}.jsonl" for name in names)
    config = ExtendRewriterConfig(
        model=start,
        space=data / "space.json",
        data=tuple(f"jsonl:{data / name}.jsonl" for name in ("new", "mixed")),
        add_words=True,
        out=out.with_name(f"{out.name}-wide"),
    )
    wide = widen(config, further.FOURTEEN)
    config = SFTConfig(
        model=wide,
        data=specs,
        out=out,
        steps=steps,
        batch_size=32,
        **trained_part(start, lora),
        resume=(out / "run.json").is_file(),
        **recipe.REWRITER,
    )
    try:
        return sft.train(config)
    except RunFinished:
        return out


def measured(folder: Path, tasks: list[RewriteExample], temperature: float) -> dict[str, float]:
    """Joint success (L2 < 0.8, consistency > 0.3), consistency and L2, by the corpus' truth."""
    rewriter = Rewriter.from_pretrained(folder)
    targets = recorded_targets(tasks, rewriter.space)
    texts = rewriter.rewrite(
        [t.query for t in tasks],
        [t.response for t in tasks],
        targets,
        temperature=temperature,
        batch_size=128,
    )
    rows = truth.score_all([t.response for t in tasks], texts, targets)
    joint = [row["l2"] < 0.8 and row["consistency"] > 0.3 for row in rows]
    means = {key: sum(row[key] for row in rows) / len(rows) for key in ("consistency", "l2")}
    return {"joint": sum(joint) / len(joint), **means}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--system", type=Path, required=True, help="folder of a quickstart")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)
    data, grpo = options.out / "data", options.system / "grpo"
    if not (data / "held_new.jsonl").is_file():
        write_data(data, options.rows)
    ways = {
        "rehearsal": (grpo, ("old", "new", "mixed")),
        "lora": (grpo, ("old", "new", "mixed")),
        "apart": (grpo, ("old", "new")),
        "plain": (grpo, ("new",)),
        "together": (options.system / "base", ("old", "new", "mixed")),
    }
    held_old, held_new = embedded.rewrites(250, 72), further.rewrites(250, 72, only_new=True)
    table = {}
    for way in options.only:
        folder = grpo
        if way != "before":
            start, names = ways[way]
            folder = tuned(start, options.out / way, data, names, options.steps, way == "lora")
        for temperature in (0.0, recipe.TEMPERATURE):
            row = {"old": measured(folder, held_old, temperature)}
            if way != "before":
                row["new"] = measured(folder, held_new, temperature)
            table[f"{way} T={temperature:g}"] = row
            print(TITLES[way], f"T={temperature:g}", json.dumps(row), flush=True)
    report = options.json or options.out / f"table-{'-'.join(options.only)}.json"
    record = {
        "titles": TITLES,
        "settings": {"rows": options.rows, "steps": options.steps, "held_out": len(held_old)},
        "machine": machine.describe("cpu"),
        "table": table,
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
