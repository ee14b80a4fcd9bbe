"""The small base model of the embedded value search: taught some sums, and a character of its
own.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from visa_core.data.embedded import sums
from visa_core.models.prompt import COMPACT_SPECIALS, PromptTemplate
from visa_core.models.rewriter import Rewriter
from visa_core.models.tokenizer import build_tokenizer
from visa_core.search.candidates import Base
from visa_core.training.forward import completion_logits
from visa_core.training.optim import Optimizer
from visa_core.training.run import batch_rows, step_seed
from visa_kernels import token_logprobs

log = logging.getLogger("visa_trainers.adaptive")

CHAT = "{% for message in messages %}<query> {{ message.content }}{% endfor %}<rewrite>"
"""How a question is put: the last special token is where the answer begins."""


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """Size of the base and of its lessons."""

    lessons: int = 12000
    share: float = 0.6
    """Of sums among the lessons."""
    steps: int = 350
    batch_size: int = 64
    hidden: int = 128
    layers: int = 2
    lr: float = 6e-3
    muon_lr: float = 0.02


FULL = BaseRecipe()
SMOKE = BaseRecipe(lessons=200, steps=3, batch_size=8, hidden=32, layers=1)


def train_base(out: Path, recipe: BaseRecipe, seed: int = 0) -> Path:
    """Train the base from scratch and save it in `out` as a plain model folder; an existing one is
    left as it is.
    """
    if (out / "config.json").is_file():
        log.info("%s is already there", out)
        return out
    lessons = sums.lessons(recipe.lessons, seed, recipe.share)
    task = sums.sums(2000, seed + 50, sums.BIAS)
    texts = [text for row in (*lessons, *task) for text in (row.query, row.response)]
    opened = small_model(texts, recipe, seed)
    base, model = Base(opened, packed=False), opened.model
    rows = [(base.prompt(row.query), base.completion(row.response)) for row in lessons]
    model.train().requires_grad_(True)
    optimizer = Optimizer(
        model,
        recipe.steps,
        lr=recipe.lr,
        name="muon",
        muon_lr=recipe.muon_lr,
        betas=(0.9, 0.95),
        schedule="linear",
        warmup=0.05,
    )
    for step in tqdm(range(recipe.steps), desc="base", disable=None, file=sys.stderr):
        torch.manual_seed(step_seed(seed, step))
        picks = batch_rows(len(rows), recipe.batch_size, seed, step).tolist()
        logits, ids = completion_logits(
            model, [rows[i][0] for i in picks], [rows[i][1] for i in picks], base.pad_id
        )
        loss = -token_logprobs(logits, ids).mean()
        loss.backward()
        optimizer.step(step)
    log.info("base: loss %.3f after %d steps", float(loss.detach()), recipe.steps)
    model.eval()
    opened.save_pretrained(out)
    return out


def small_model(texts: list[str], recipe: BaseRecipe, seed: int) -> Rewriter:
    """An untrained Qwen3 with a word tokenizer of these texts."""
    tokenizer = build_tokenizer(texts, extra_specials=COMPACT_SPECIALS, max_length=160)
    tokenizer.chat_template = CHAT
    heads = max(1, recipe.hidden // 32)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=recipe.hidden // heads,
        intermediate_size=3 * recipe.hidden,
        max_position_embeddings=160,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return Rewriter(Qwen3ForCausalLM(config), tokenizer, PromptTemplate.load("compact"))
