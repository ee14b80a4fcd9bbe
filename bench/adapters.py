"""K mock updates at once against one after the other: `python -m bench.adapters [--tokens 64 ...]`.

A random Qwen3 is trained by K adapters on rows of `tokens` tokens, half prompt and half completion,
for a few steps: once with all K in each pass, once candidate by candidate, in turns in one process.
The curve over `tokens` (of one candidate's micro-batch) shows where the base's products are large
enough alone, so that joining them gains nothing more. Adapters that differ get no time.

Memory is an update's peak beyond what was in use before it: resident set on the CPU, torch's
allocator on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench import machine, memory
from bench.timing import rounds
from visa_core.config.search import UpdateConfig
from visa_core.search.adapters import CandidateAdapters, weights_digest
from visa_core.search.updates import Row, mock_update
from visa_core.training.packed_attention import enable_shared_prefix

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 2e-3, "bf16": 0.3}
"""Largest relative difference of the adapters' B after the steps, in norm."""
SIZES = {
    "small": {"hidden": 256, "layers": 4, "vocabulary": 4096, "intermediate": 768},
    "0.6b": {"hidden": 1024, "layers": 28, "vocabulary": 151936, "intermediate": 3072},
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--row", type=int, default=64, help="longest row in tokens")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--padded", action="store_true", help="padded rows instead of packed ones")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    return parser.parse_args(arguments)


def random_model(options: argparse.Namespace) -> Qwen3ForCausalLM:
    """A random base; heads of 64, or of 128 at 0.6 B as in the real one."""
    size = SIZES[options.size]
    torch.manual_seed(0)
    big = options.size == "0.6b"
    config = Qwen3Config(
        vocab_size=size["vocabulary"],
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=16 if big else 4,
        num_key_value_heads=8 if big else 4,
        head_dim=128 if big else 64,
        intermediate_size=size["intermediate"],
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to(options.device, DTYPES[options.dtype]).eval()
    if not options.padded:
        enable_shared_prefix(model)
    return model


def random_rows(options: argparse.Namespace, tokens: int) -> list[list[Row]]:
    """Rows of each candidate that hold `tokens` tokens together."""
    generator = torch.Generator().manual_seed(tokens)
    length = min(options.row, tokens)
    shape = (options.candidates, tokens // length, length)
    ids = torch.randint(2, SIZES[options.size]["vocabulary"], shape, generator=generator)
    half = length // 2
    return [[Row(row[:half], row[half:]) for row in own] for own in ids.tolist()]


def updated(
    model: Qwen3ForCausalLM, rows: list[list[Row]], options: argparse.Namespace
) -> torch.Tensor:
    """All B of the candidates in `rows` after a mock update, [K, weights]."""
    config = UpdateConfig(
        steps=options.steps,
        batch_size=len(rows[0]),
        rank=options.rank,
        lr=1e-3,
        token_budget=10**9,
    )
    adapters = CandidateAdapters(model, len(rows), rank=config.rank, alpha=config.alpha)
    mock_update(model, adapters, rows, config, pad_id=0)
    return torch.cat([b.detach().flatten(1) for b in adapters.B], 1)


def measured(model: Qwen3ForCausalLM, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways at one size, and how far their adapters are apart."""
    rows = random_rows(options, tokens)

    def together() -> torch.Tensor:
        return updated(model, rows, options)

    def one_by_one() -> torch.Tensor:
        return torch.cat([updated(model, [own], options) for own in rows])

    a, b = together(), one_by_one()
    apart = float((a - b).norm() / b.norm())
    row: dict[str, Any] = {"tokens": tokens, "difference": apart}
    if apart > TOLERANCE[options.dtype]:
        return row | {"correct": False}
    ways = {"batched": together, "sequential": one_by_one}
    seconds = rounds(
        ways, options.device, 0.0, least=options.turns, most=options.turns, flush=False
    )
    row |= {f"{name}_s": statistics.median(times) for name, times in seconds.items()}
    return row | {"correct": True, "speedup": row["sequential_s"] / row["batched_s"]}


def memories(model: Qwen3ForCausalLM, options: argparse.Namespace) -> dict[str, float | None]:
    """MiB of the base's weights, of all adapters, and what an update of one and of all candidates
    takes at its peak beyond what was in use before.
    """
    rows = random_rows(options, options.tokens[-1])
    adapters = CandidateAdapters(model, options.candidates, rank=options.rank)
    found: dict[str, float | None] = {
        "weights": sum(w.numel() * w.element_size() for w in model.parameters()) / 2**20,
        "adapters": adapters.numbers() * 4 / 2**20,
    }
    del adapters
    for name, chosen in (("one", rows[:1]), ("all", rows)):
        taken = memory.of_call(partial(updated, model, chosen, options), options.device)
        found[name] = None if taken is None else taken.peak / 2**20
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 where the two ways differ."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    model = random_model(options)
    before = weights_digest(model)
    print("| tokens a candidate | batched s | one by one s | speedup | difference |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for tokens in options.tokens:
        row = measured(model, tokens, options)
        rows.append(row)
        times = (
            f"{row['batched_s']:.3f} | {row['sequential_s']:.3f} | {row['speedup']:.2f}"
            if row["correct"]
            else "- | - | -"
        )
        print(f"| {tokens} | {times} | {row['difference']:.1e} |", flush=True)
    unchanged = weights_digest(model) == before
    used = memories(model, options)
    shown = {k: "-" if mib is None else f"{mib:.1f} MiB" for k, mib in used.items()}
    print(
        f"at {options.tokens[-1]} tokens a candidate: weights of the base {shown['weights']}; "
        f"{options.candidates} adapters {shown['adapters']}; an update's peak beyond the base: one "
        f"candidate {shown['one']}, {options.candidates} at once {shown['all']}; base "
        f"{'unchanged' if unchanged else 'CHANGED'}"
    )
    if options.out is not None:
        settings = {k: v for k, v in vars(options).items() if k != "out"}
        record = {
            "settings": settings,
            "machine": machine.describe(options.device),
            "rows": rows,
            "memory_mib": used,
            "base_unchanged": unchanged,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(not unchanged or not all(row["correct"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
