"""Throughput of MMLU by answer log-probability: `python -m bench.mmlu [--device cuda] [--turns 3]`.

A random Qwen3 answers questions that share a few-shot prompt, in turns in one process:

- packed: `AnswerScorer`; letters read the few-shot prompt once for all questions of a pass, texts a
  question once for its choices; nothing is padded
- padded_choice: the plain way, one padded row a choice
- padded_question (letters alone): one left-padded row a question, whose last logits hold all four

A side whose log-probabilities differ from a pass of its own for each choice gets no time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench import machine
from bench.timing import rounds
from visa_core.evaluation.capability.scorer import AnswerScorer
from visa_core.rollout.padding import left_pad

CHOICES, CHOICE_TOKENS = 4, 8
TOLERANCE = {"fp32": 2e-4, "bf16": 0.25}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Side = Callable[[], torch.Tensor]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=400, help="tokens of the few-shot prompt")
    parser.add_argument("--length", type=int, default=60, help="mean tokens of a question")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--budget", type=int, default=8192, help="tokens of a pass")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    return parser.parse_args(arguments)


def random_model(options: argparse.Namespace) -> Qwen3ForCausalLM:
    """Weights wide enough that text changes the logits; heads of 64."""
    heads = max(1, options.hidden // 64)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=64,
        max_position_embeddings=16384,
        initializer_range=0.05,
    )
    return Qwen3ForCausalLM(config).to(options.device, DTYPES[options.dtype]).eval()


def questions(options: argparse.Namespace) -> tuple[list[int], list[list[int]], list[list[list]]]:
    """A few-shot prompt, questions of half to one and a half times the mean length, choices."""
    drawn = torch.Generator().manual_seed(0)

    def row(length: int) -> list[int]:
        return torch.randint(2, options.vocabulary, (length,), generator=drawn).tolist()

    half = max(1, options.length // 2)
    lengths = torch.randint(half, 3 * half + 1, (options.questions,), generator=drawn).tolist()
    rows = [row(length) for length in lengths]
    return row(options.prefix), rows, [[row(CHOICE_TOKENS) for _ in range(CHOICES)] for _ in rows]


@torch.no_grad()
def question_rows(
    model: Qwen3ForCausalLM, prompts: list[list[int]], letters: list[int], budget: int
) -> torch.Tensor:
    """Letters' log-probabilities [questions, letters] by one left-padded row a question."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = torch.empty(len(prompts), len(letters))
    while order:
        take = max(1, budget // len(prompts[order[-1]]))
        chosen, order = order[-take:], order[:-take]
        ids, mask = left_pad([prompts[i] for i in chosen], 0, model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        out[chosen] = logits.float().log_softmax(-1)[:, letters].cpu()
    return out


def sides(model: Qwen3ForCausalLM, options: argparse.Namespace) -> dict[str, dict[str, Side]]:
    """Form -> side -> a call that gives all log-probabilities [questions, choices]."""
    prefix, rows, texts = questions(options)
    letters = list(range(2, 2 + CHOICES))
    prompts = [[*prefix, *row] for row in rows]
    packed = AnswerScorer(model, token_budget=options.budget)
    plain = AnswerScorer(model, token_budget=options.budget, packed=False)
    return {
        "letter": {
            "packed": lambda: packed.next_token(prefix, rows, letters),
            "padded_question": lambda: question_rows(model, prompts, letters, options.budget),
            "padded_choice": lambda: plain.next_token(prefix, rows, letters),
        },
        "text": {
            "packed": lambda: torch.stack(packed.continuations(prompts, texts)),
            "padded_choice": lambda: torch.stack(plain.continuations(prompts, texts)),
        },
    }


@torch.no_grad()
def one_by_one(model: Qwen3ForCausalLM, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The same by a float32 pass of its own for each choice."""
    prefix, rows, texts = questions(options)
    model = model.float()

    def logprob(prompt: list[int], choice: list[int]) -> float:
        ids = torch.tensor([[*prompt, *choice]], device=model.device)
        kept = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(kept.gather(-1, ids[0, len(prompt) :, None]).sum())

    prompts = [[*prefix, *row] for row in rows]
    return {
        "letter": torch.tensor([[logprob(p, [2 + i]) for i in range(CHOICES)] for p in prompts]),
        "text": torch.tensor(
            [[logprob(p, c) for c in group] for p, group in zip(prompts, texts, strict=True)]
        ),
    }


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    model = random_model(options)
    wanted = one_by_one(random_model(options), options)
    result: dict[str, Any] = {
        **machine.describe(options.device),
        "settings": {k: v for k, v in vars(options).items() if not isinstance(v, Path)},
        "forms": {},
    }
    for form, runs in sides(model, options).items():
        errors = {name: float((run() - wanted[form]).abs().max()) for name, run in runs.items()}
        right = {n: r for n, r in runs.items() if errors[n] <= TOLERANCE[options.dtype]}
        times = rounds(right, options.device, 0.0, least=options.turns, most=options.turns)
        result["forms"][form] = compared(times, errors, options.questions)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    wrong = [name for form in result["forms"].values() for name in form["wrong"]]
    if wrong:
        print(f"wrong, so not timed: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def compared(times: dict[str, list[float]], errors: dict[str, float], count: int) -> dict[str, Any]:
    """Questions a second (median), and how many times as fast packed is: median, least and most of
    the ratios within a turn.
    """
    record: dict[str, Any] = {
        "questions_per_second": {n: count / statistics.median(t) for n, t in times.items()},
        "largest_error": errors,
        "wrong": [name for name in errors if name not in times],
        "times_as_fast": {},
    }
    for name, seconds in times.items():
        if name != "packed" and "packed" in times:
            ratios = sorted(s / p for s, p in zip(seconds, times["packed"], strict=True))
            record["times_as_fast"][name] = [statistics.median(ratios), ratios[0], ratios[-1]]
    return record


if __name__ == "__main__":
    sys.exit(main())
