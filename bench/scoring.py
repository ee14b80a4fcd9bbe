"""Scoring pairs of texts against other libraries: `python -m bench.scoring [--pairs 2000]`.

One sequence classifier of MiniLM's size (6 layers, width 384, 12 heads; random weights) reads pairs
of 16 to 400 tokens, no text twice. Sides, in turns in one process, each from texts to decisions:

- ours: `FactAnalyzer.predict`; texts tokenised once, packed without padding
- ours-bf16: the same with `precision="bfloat16"`, pairs in doubt read again in float32
- cross_encoder: `CrossEncoder.predict` of sentence-transformers, which sorts by length; batch 32
- cross_encoder-bf16: the same, loaded in bfloat16; it has its own decisions, which are counted
- pipeline: transformers' text-classification pipeline, batch 32

The others compute in float32. Loading is not counted; what ours does at its first call (laying out
weights, trying the encoder on two rows, calibrating bfloat16) is, in every turn. The classifier's
bias is set so that all three labels occur; a side whose decisions differ from ours in float32 is
reported as wrong, without a ratio.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine

SHORTEST, LONGEST, BATCH = 16, 400, 32
LABELS = ("entailment", "neutral", "contradiction")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Scorer:
    """Scores of pairs [B, 3], and how many of them were read twice."""

    score: Callable[[Pairs], np.ndarray]
    read_again: Callable[[], int] = lambda: 0


Side = Callable[[Path], Scorer]


def ours(folder: Path, precision: str = "float32") -> Scorer:
    from visa_core.models.fact_analyzer import FactAnalyzer

    analyzer = FactAnalyzer.from_pretrained(folder, precision=precision)

    def score(pairs: Pairs) -> np.ndarray:
        return analyzer.predict([a for a, _ in pairs], [b for _, b in pairs]).log().numpy()

    def read_again() -> int:
        return 0 if analyzer.two_readings is None else analyzer.two_readings.read_again

    return Scorer(score, read_again)


def cross_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> Scorer:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype}
    )

    def score(pairs: Pairs) -> np.ndarray:
        logits = model.predict(
            pairs, batch_size=BATCH, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        return logits.astype(np.float32)

    return Scorer(score)


def pipeline(folder: Path) -> Scorer:
    import transformers

    run = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)

    def score(pairs: Pairs) -> np.ndarray:
        texts = [{"text": a, "text_pair": b} for a, b in pairs]
        rows = run(texts, batch_size=BATCH, function_to_apply="none")
        named = [{entry["label"]: entry["score"] for entry in row} for row in rows]
        return np.array([[row[label] for label in LABELS] for row in named])

    return Scorer(score)


SIDES: dict[str, Side] = {
    "cross_encoder": cross_encoder,
    "cross_encoder-bf16": partial(cross_encoder, dtype=torch.bfloat16),
    "ours": ours,
    "ours-bf16": partial(ours, precision="bfloat16"),
    "pipeline": pipeline,
}
OURS = ("ours", "ours-bf16")
MAY_DIFFER = ("cross_encoder-bf16",)
"""Sides whose decisions are theirs: counted, no failure."""


def main(arguments: list[str] | None = None) -> int:
    """Measure all sides in turns; 1 where float32's decisions are not the same everywhere."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    absent = [name for name in options.side if why_not(name)]
    for name in absent:
        print(f"{name}: absent ({why_not(name)})")
    sides = [name for name in options.side if name not in absent]
    with tempfile.TemporaryDirectory() as scratch:
        folder, pairs, lengths = prepare(Path(scratch), options)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        scores: dict[str, np.ndarray] = {}
        again: dict[str, int] = {}
        for turn in range(options.turns):
            for name in sides:
                took, used, again[name] = timed(name, folder, pairs, scores)
                seconds[name].append(took)
                cpu[name].append(used)
                print(f"turn {turn + 1}, {name}: {took:.2f} s, CPU {used:.2f} s", flush=True)
    result = compared(seconds, scores, lengths, options, cpu)
    result["summary"]["read_again"] = {name: again[name] for name in again if name in OURS}
    print(json.dumps(result["summary"], indent=2))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scoring.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"-> {path}")
    same = result["summary"]["same_decisions"]
    return int(not all(same[name] for name in same if name not in MAY_DIFFER))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.out = options.out or Path(__file__).parent / "results" / machine.folder_name("cpu")
    return options


def why_not(name: str) -> str | None:
    """Why a side cannot run here, or None."""
    package = "sentence-transformers" if name.startswith("cross_encoder") else None
    try:
        if package:
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed: make bench-deps"
    return None


def prepare(scratch: Path, options: argparse.Namespace) -> tuple[Path, Pairs, list[int]]:
    """A model folder, pairs of texts, and each pair's tokens."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from visa_core.models.encoder import minilm_folder

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
    tokenizer.model_max_length = 512
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden,
        # Wide enough that texts are told apart.
        initializer_range=0.05,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config).eval()
    pairs, lengths = make_pairs(tokenizer, options.pairs)
    with torch.inference_mode():
        sample = tokenizer(*zip(*pairs[:64], strict=True), padding=True, return_tensors="pt")
        model.classifier.bias -= model(**sample).logits.mean(0)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch, pairs, lengths


def make_pairs(tokenizer: Any, count: int) -> tuple[Pairs, list[int]]:
    """Pairs of random whole words whose lengths in tokens are spread evenly over the range."""
    draw = random.Random(0)
    words = [w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 2]
    words.sort()
    pairs, lengths = [], []
    for index in range(count):
        total = SHORTEST + (LONGEST - SHORTEST) * index // max(count - 1, 1) - 3
        first = draw.randint(total // 4, 3 * total // 4)
        pairs.append(tuple(" ".join(draw.choices(words, k=k)) for k in (first, total - first)))
        lengths.append(total + 3)
    order = draw.sample(range(count), count)
    return [pairs[i] for i in order], [lengths[i] for i in order]


def timed(
    name: str, folder: Path, pairs: Pairs, scores: dict[str, np.ndarray]
) -> tuple[float, float, int]:
    """Seconds, CPU seconds and pairs read twice of one side, loaded anew; its scores are kept, and
    must not change between turns.
    """
    gc.collect()  # token ids that an earlier side kept, too
    side = SIDES[name](folder)
    start, used = time.perf_counter(), time.process_time()
    found = side.score(pairs)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    # Log-probabilities and logits differ by a constant of each row.
    found = found - found.mean(axis=1, keepdims=True)
    if name in scores:
        np.testing.assert_allclose(found, scores[name], atol=1e-3)
    scores[name] = found
    return seconds, used, side.read_again()


def compared(
    seconds: dict[str, list[float]],
    scores: dict[str, np.ndarray],
    lengths: list[int],
    options: argparse.Namespace,
    cpu: dict[str, list[float]],
) -> dict[str, Any]:
    """Medians, ratios of each turn, and whether every decision is the same. Ratios of CPU seconds
    hold where other work slows the clock on the wall.
    """
    decisions = {name: found.argmax(axis=1) for name, found in scores.items()}
    peers = [name for name in seconds if name != "ours"] if "ours" in seconds else []
    differing = {name: int((decisions[name] != decisions["ours"]).sum()) for name in peers}
    right = [name for name in peers if not differing[name] and name not in OURS]
    margin = np.sort(next(iter(scores.values())), axis=1)
    summary: dict[str, Any] = {
        "pairs_per_second": {
            name: round(options.pairs / statistics.median(each), 1)
            for name, each in seconds.items()
        },
        "times_faster_than": ratios(seconds, right, "ours"),
        "times_faster_than_cpu": ratios(cpu, right, "ours"),
        "same_decisions": {name: not differing[name] for name in peers},
        "decisions_that_differ": differing,
        "largest_difference": {
            name: float(np.abs(scores[name] - scores["ours"]).max()) for name in peers
        },
        "decisions_of_each_label": np.bincount(
            next(iter(decisions.values())), minlength=len(LABELS)
        ).tolist(),
        "smallest_margin": float((margin[:, -1] - margin[:, -2]).min()),
        "tokens": sum(lengths),
    }
    if differing.get("ours-bf16") == 0:
        others = [*right, "ours"]
        summary["bf16_times_faster_than"] = ratios(seconds, others, "ours-bf16")
        summary["bf16_times_faster_than_cpu"] = ratios(cpu, others, "ours-bf16")
    settings = {key: value for key, value in vars(options).items() if isinstance(value, int)}
    return {
        **machine.describe("cpu"),
        "settings": settings | {"batch": BATCH},
        "summary": summary,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def ratios(
    seconds: dict[str, list[float]], peers: list[str], mine: str
) -> dict[str, list[float]]:
    """Each peer's time as a multiple of one of our sides', within turns."""
    return {
        name: spread([a / b for a, b in zip(seconds[name], seconds[mine], strict=True)])
        for name in peers
    }


def spread(ratios: list[float]) -> list[float]:
    """Least, median and largest."""
    return [round(x, 2) for x in (min(ratios), statistics.median(ratios), max(ratios))]


if __name__ == "__main__":
    sys.exit(main())
