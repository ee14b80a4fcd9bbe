"""Data construction the plain way, to be compared with: all in memory, datasketch's own index.

`python -m bench.construction_plain TABLE.csv OUT`; the same rules as `visa data build` with its
defaults and the lexicon annotator, written as a script would be.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH

from bench.alignment_file import LETTERS, STRAY, TURNS
from visa_core.data.annotate.lexicon import LexiconAnnotator

PERMUTATIONS, NEAR, AMBIGUOUS = 64, 0.85, 0.15


def read_pairs(table: Path) -> list[dict]:
    """All comparisons."""
    pairs = []
    with table.open(encoding="utf-8", newline="") as file:
        for row in list(csv.DictReader(file)):
            cells = {name: text.replace(STRAY, "").strip() for name, text in row.items()}
            history, root = "", cells["first_turn_prompt"]
            for turn in TURNS:
                prompt, preferred = cells[f"{turn}_turn_prompt"], f"{turn}_turn_preferred_response"
                if not prompt or not cells[preferred]:
                    break
                chosen = cells[f"{turn}_turn_{cells[preferred]}"]
                others = dict.fromkeys(cells[f"{turn}_turn_response_{x}"] for x in LETTERS)
                asked = f"{history}Human: {prompt}" if history else prompt
                for other in others:
                    if other and other != chosen:
                        pairs.append(
                            {
                                "prompt": asked,
                                "chosen": chosen,
                                "rejected": other,
                                "explanation": cells[f"{turn}_turn_feedback"],
                                "root": root,
                            }
                        )
                history += f"Human: {prompt}\n\nAssistant: {chosen}\n\n"
    return pairs


class Near:
    """Groups of near texts by datasketch alone."""

    def __init__(self) -> None:
        self.index = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
        self.sketches: dict[str, MinHash] = {}
        self.groups: dict[str, str] = {}

    def group(self, text: str) -> str:
        """The leader of a text's group."""
        plain = " ".join(re.findall(r"\w+", text.casefold())) or text
        if plain not in self.groups:
            sketch = MinHash(num_perm=PERMUTATIONS)
            words = plain.split()
            for triple in zip(words, words[1:], words[2:], strict=False):
                sketch.update(" ".join(triple).encode())
            if len(words) < 3:
                sketch.update(plain.encode())
            near = [x for x in self.index.query(sketch) if self.close(sketch, x)]
            self.groups[plain] = near[0] if near else plain
            if not near:
                self.sketches[plain] = sketch
                self.index.insert(plain, sketch)
        return self.groups[plain]

    def close(self, sketch: MinHash, other: str) -> bool:
        """Whether the estimate reaches the threshold."""
        return sketch.jaccard(self.sketches[other]) >= NEAR


def main(table: Path, out: Path) -> None:
    pairs = read_pairs(table)
    read = len(pairs)
    unique = {tuple(pair.values()): pair for pair in pairs}
    pairs = list(unique.values())
    annotator = LexiconAnnotator()
    vectors: dict[tuple[str, str], list] = defaultdict(list)
    for pair in pairs:
        levels = annotator.levels(pair["chosen"], pair["rejected"], pair["explanation"])
        for side, level in zip(("chosen", "rejected"), levels, strict=True):
            pair[f"{side}_values"] = np.array(level) / 2
            vectors[pair["prompt"], pair[side]].append(pair[f"{side}_values"])
    spread = {key: np.var(rows, axis=0).sum() for key, rows in vectors.items()}
    worst = [
        max(spread[p["prompt"], p["chosen"]], spread[p["prompt"], p["rejected"]]) for p in pairs
    ]
    order = np.argsort(-np.array(worst), kind="stable")[: int(AMBIGUOUS * len(pairs))]
    dropped = {int(i) for i in order if worst[i] > 0}
    near, roots = Near(), Near()
    kept: dict[tuple[str, str, str], dict] = {}
    for i, pair in enumerate(pairs):
        shift = pair["chosen_values"] - pair["rejected_values"]
        if i in dropped or np.linalg.norm(shift) < 0.5:
            continue
        for source, target in (("rejected", "chosen"), ("chosen", "rejected")):
            texts = (pair["prompt"], pair[source], pair[target])
            row = {
                "query": texts[0],
                "response": texts[1],
                "reference": texts[2],
                "root": roots.group(pair["root"]),
                "values": pair[f"{source}_values"].tolist(),
                "target": pair[f"{target}_values"].tolist(),
            }
            kept.setdefault(tuple(near.group(text) for text in texts), row)
    out.mkdir(parents=True)
    rows = list(kept.values())
    with (out / "triplets.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), out / "triplets.parquet")
    stages = {"comparisons read": read, "triplets": len(rows)}
    (out / "report.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
