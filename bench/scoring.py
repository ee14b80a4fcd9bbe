"""Scoring pairs of texts against other libraries: `python -m bench.scoring [--pairs 2000]`.

One sequence classifier of MiniLM's size (6 layers, width 384, 12 heads; random weights) reads pairs
of 16 to 400 tokens, no text twice. Sides, in turns in one process, each from texts to decisions:

- ours: `FactAnalyzer.predict`; texts tokenised once, packed without padding
- cross_encoder: `CrossEncoder.predict` of sentence-transformers, which sorts by length; batch 32
- pipeline: transformers' text-classification pipeline, batch 32

All compute in float32. Loading is not counted; what ours does at its first call (laying out
weights, trying the encoder on two rows) is, in every turn. The classifier's bias is set so that all
three labels occur; a side whose decisions differ is reported as wrong, without a ratio.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine

SHORTEST, LONGEST, BATCH = 16, 400, 32
LABELS = ("entailment", "neutral", "contradiction")
Pairs = list[tuple[str, str]]
Side = Callable[[Path], Callable[[Pairs], np.ndarray]]


def ours(folder: Path) -> Callable[[Pairs], np.ndarray]:
    from visa_core.models.fact_analyzer import FactAnalyzer

    analyzer = FactAnalyzer.from_pretrained(folder)

    def score(pairs: Pairs) -> np.ndarray:
        return analyzer.predict([a for a, _ in pairs], [b for _, b in pairs]).log().numpy()

    return score


def cross_encoder(folder: Path) -> Callable[[Pairs], np.ndarray]:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)

    def score(pairs: Pairs) -> np.ndarray:
        return model.predict(
            pairs, batch_size=BATCH, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )

    return score


def pipeline(folder: Path) -> Callable[[Pairs], np.ndarray]:
    import transformers

    run = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)

    def score(pairs: Pairs) -> np.ndarray:
        texts = [{"text": a, "text_pair": b} for a, b in pairs]
        rows = run(texts, batch_size=BATCH, function_to_apply="none")
        named = [{entry["label"]: entry["score"] for entry in row} for row in rows]
        return np.array([[row[label] for label in LABELS] for row in named])

    return score


SIDES: dict[str, Side] = {"cross_encoder": cross_encoder, "ours": ours, "pipeline": pipeline}


def main(arguments: list[str] | None = None) -> int:
    """Measure all sides in turns; 1 where ours decides otherwise than the others."""
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
        for turn in range(options.turns):
            for name in sides:
                took, used = timed(name, folder, pairs, scores)
                seconds[name].append(took)
                cpu[name].append(used)
                print(f"turn {turn + 1}, {name}: {took:.2f} s, CPU {used:.2f} s", flush=True)
    result = compared(seconds, scores, lengths, options, cpu)
    print(json.dumps(result["summary"], indent=2))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scoring.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"-> {path}")
    return int(any(not same for same in result["summary"]["same_decisions"].values()))


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
    package = {"cross_encoder": "sentence-transformers"}.get(name)
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
) -> tuple[float, float]:
    """Seconds and CPU seconds of one side, loaded anew; its scores are kept, and must not change
    between turns.
    """
    score = SIDES[name](folder)
    gc.collect()
    start, used = time.perf_counter(), time.process_time()
    found = score(pairs)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    # Log-probabilities and logits differ by a constant of each row.
    found = found - found.mean(axis=1, keepdims=True)
    if name in scores:
        np.testing.assert_allclose(found, scores[name], atol=1e-3)
    scores[name] = found
    return seconds, used


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
    margin = np.sort(next(iter(scores.values())), axis=1)
    summary: dict[str, Any] = {
        "pairs_per_second": {
            name: round(options.pairs / statistics.median(each), 1)
            for name, each in seconds.items()
        },
        "times_faster_than": ratios(seconds, peers),
        "times_faster_than_cpu": ratios(cpu, peers),
        "same_decisions": {
            name: bool((decisions[name] == decisions["ours"]).all()) for name in peers
        },
        "largest_difference": {
            name: float(np.abs(scores[name] - scores["ours"]).max()) for name in peers
        },
        "decisions_of_each_label": np.bincount(
            next(iter(decisions.values())), minlength=len(LABELS)
        ).tolist(),
        "smallest_margin": float((margin[:, -1] - margin[:, -2]).min()),
        "tokens": sum(lengths),
    }
    for name, same in summary["same_decisions"].items():
        if not same:
            summary["times_faster_than"].pop(name)
            summary["times_faster_than_cpu"].pop(name)
    settings = {key: value for key, value in vars(options).items() if isinstance(value, int)}
    return {
        **machine.describe("cpu"),
        "settings": settings | {"batch": BATCH},
        "summary": summary,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def ratios(seconds: dict[str, list[float]], peers: list[str]) -> dict[str, list[float]]:
    """Each peer's time as a multiple of ours, within turns."""
    return {
        name: spread([a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)])
        for name in peers
    }


def spread(ratios: list[float]) -> list[float]:
    """Least, median and largest."""
    return [round(x, 2) for x in (min(ratios), statistics.median(ratios), max(ratios))]


if __name__ == "__main__":
    sys.exit(main())
