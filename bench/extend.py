"""Four further values taught to the embedded detector: `python -m bench.extend --out FOLDER`.

Old values: the quickstart's dialogues. New values: texts of the four alone. Beside it a detector
that learns all fourteen at once, from the old dialogues and texts of all fourteen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import machine
from visa_core.config import DetectorConfig
from visa_core.config.extend import ExtendScorerConfig
from visa_core.data import embedded
from visa_core.data.embedded import further
from visa_core.data.schema import write_jsonl
from visa_core.training.run import RunFinished
from visa_trainers import detector, extend


def run(
    out: Path,
    seed: int,
    old_rows: int,
    new_rows: int,
    detector_folder: Path | None = None,
    held_rows: int = 1500,
) -> Path:
    """Train what is missing in `out`; returns the path of the report."""
    specs = write_data(out / "data", seed, old_rows, new_rows, held_rows)
    old = detector_folder or trained(out / "old", (specs["old"],), None, seed)
    space = out / "data" / "space.json"
    reference = trained(out / "together", (specs["old"], specs["all"]), space, seed)
    config = ExtendScorerConfig(
        model=old,
        space=space,
        data=(specs["new"],),
        rehearsal=(specs["old"],),
        held_out=(specs["held_out"],),
        held_out_old=(specs["held_out_old"],),
        reference=reference,
        add_words=True,
        device="cpu",
        seed=seed,
        out=out / "extended",
    )
    return extend.train(config)


def write_data(
    folder: Path, seed: int, old_rows: int, new_rows: int, held_rows: int
) -> dict[str, str]:
    """All data sets as JSON lines; their --data specifications by name."""
    folder.mkdir(parents=True, exist_ok=True)
    further.FOURTEEN.save(folder / "space.json")
    sets = {
        "old": embedded.dialogues(old_rows, 10 * seed),
        "new": further.dialogues(new_rows, 10 * seed, only_new=True),
        "all": further.dialogues(2 * new_rows, 10 * seed + 1),
        "held_out": further.dialogues(held_rows, 10 * seed + 2),
        "held_out_old": embedded.dialogues(held_rows, 10 * seed + 3),
    }
    for name, rows in sets.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return {name: f"jsonl:{folder / name}.jsonl" for name in sets}


def trained(out: Path, data: tuple[str, ...], space: Path | None, seed: int) -> Path:
    """A detector of these data, as the quickstart trains it."""
    resume = (out / "run.json").is_file()
    config = DetectorConfig(
        data=data, out=out, backbone="builtin", space=space, seed=seed, device="cpu", resume=resume
    )
    try:
        return detector.train(config)
    except RunFinished:
        return out


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--old-rows", type=int, default=8000)
    parser.add_argument("--new-rows", type=int, default=3000)
    parser.add_argument("--detector", type=Path, help="detector of the ten values, else trained")
    parser.add_argument("--json", type=Path, help="file for the figures with the machine's")
    options = parser.parse_args(argv)
    report = run(options.out, options.seed, options.old_rows, options.new_rows, options.detector)
    if options.json is not None:
        record = json.loads(report.read_text(encoding="utf-8"))
        kept = {name: record[name] for name in ("part", "old", "new", "chosen", "measured", "rows")}
        kept |= {"seed": options.seed, "machine": machine.describe("cpu")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(report.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
