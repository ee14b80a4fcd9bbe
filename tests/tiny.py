"""Models of a few thousand weights, untrained, for tests of what stands around them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from visa_core.config import NLIConfig
from visa_core.data import embedded
from visa_core.models.detector import Detector
from visa_core.models.fact_analyzer import AnalyzerSettings
from visa_core.models.nli_base import base_analyzer
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.pipeline import write_system
from visa_core.types import RewriteExample

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template in the manner of Qwen's."""


def examples(n: int = 64, seed: int = 0) -> list[RewriteExample]:
    """Rewriting tasks of the embedded corpus."""
    return embedded.rewrites(n, seed)


def texts() -> list[str]:
    """What the tokenizers are built from."""
    return [text for e in examples() for text in (e.query, e.response, e.instruction)]


def write_scorers(folder: Path) -> None:
    """Untrained detector, translator and fact analyzer as sub-folders."""
    words = texts()
    size = {"max_length": 128, "hidden_size": 32, "layers": 1}
    Detector.create("builtin", texts=words, **size).save_pretrained(folder / "detector")
    translator = Translator.create("builtin", texts=words, **size)
    with torch.no_grad():
        translator.vector_head.score.weight *= 4  # so that some targets need clipping
    translator.save_pretrained(folder / "translator")
    config = NLIConfig(out=folder, hidden_size=16, layers=1, max_length=128)
    analyzer = base_analyzer(config, AnalyzerSettings(), words)
    analyzer.save_pretrained(folder / "fact_analyzer")


def write_rewriter(folder: Path, **limits: int) -> None:
    """An untrained rewriter with the compact template."""
    sizes = {"max_prompt": 160, "max_completion": 24} | limits
    small = Rewriter.small(texts(), hidden=32, layers=1, heads=2, intermediate=64, **sizes)
    for name, weight in small.model.named_parameters():
        if "layers" in name and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)  # so that it does not say its prompt's end again
    small.save_pretrained(folder)


def write_small_system(folder: Path) -> Path:
    """A system folder of untrained parts."""
    write_scorers(folder)
    write_rewriter(folder / "rewriter")
    write_system(folder, rewriter="rewriter")
    return folder


def write_causal_lm(
    folder: Path, corpus: list[str], vocabulary: int = 600, chat: bool = True
) -> None:
    """A plain Hugging Face folder: an untrained Qwen3 and a byte-level BPE tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )
    if chat:
        tokenizer.chat_template = CHAT
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tasks(path: Path, n: int = 24, seed: int = 1) -> Path:
    """Rewriting tasks with references as JSON lines."""
    rows = [json.dumps(asdict(e)) for e in examples(n, seed)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_lines(path: Path, lines: list[object]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def sft_command(model: Path, out: Path, *more: object) -> list[object]:
    limits = ["--max-prompt", "160", "--max-completion", "96", "--steps", "1", "--batch-size", "2"]
    common = ["train", "sft", "--model", model, "--out", out, "--device", "cpu"]
    return [*common, "--precision", "fp32", *limits, *more]


def grpo_command(system: Path, tasks: Path, out: Path, *more: object) -> list[object]:
    command = sft_command(system / "rewriter", out, "--data", f"jsonl:{tasks}")
    command[1] = "grpo"
    command += ["--accumulation", "1", "--group-size", "2", "--max-completion", "8"]
    for name in ("detector", "translator", "fact_analyzer"):
        command += [f"--{name.replace('_', '-')}", system / name]
    return [*command, *more]
