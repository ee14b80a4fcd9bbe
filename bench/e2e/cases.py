"""What is measured: model shapes, lengths and batch sizes, and the FLOPs that a step needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAD, STOP = 0, 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen3's sizes; random weights."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    intermediate: int
    vocabulary: int


SMALL = Shape(
    hidden=256,
    layers=4,
    heads=4,
    key_heads=2,
    head_size=64,
    intermediate=768,
    vocabulary=4096,
)
"""About 4 million parameters."""
QWEN3_06B = Shape(
    hidden=1024,
    layers=28,
    heads=16,
    key_heads=8,
    head_size=128,
    intermediate=3072,
    vocabulary=151936,
)
QWEN3_4B = Shape(
    hidden=2560,
    layers=36,
    heads=32,
    key_heads=8,
    head_size=128,
    intermediate=9728,
    vocabulary=151936,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training step: `prompts` times `group` completions.

    micro_rows: completions of one forward and backward pass; all of them where memory allows.
    """

    shape: Shape
    prompts: int = 8
    group: int = 8
    prompt_tokens: int
    completion_tokens: int
    micro_rows: int
    dtype: str
    device: str

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.prompts * self.group

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


CASES = {
    "64+64": Case(
        shape=SMALL,
        prompt_tokens=64,
        completion_tokens=64,
        micro_rows=64,
        dtype="float32",
        device="cpu",
    ),
    "384+96": Case(
        shape=SMALL,
        prompt_tokens=384,
        completion_tokens=96,
        micro_rows=64,
        dtype="float32",
        device="cpu",
    ),
    "qwen3-0.6b": Case(
        shape=QWEN3_06B,
        prompt_tokens=512,
        completion_tokens=512,
        micro_rows=16,
        dtype="bfloat16",
        device="cuda",
    ),
    "qwen3-4b": Case(
        shape=QWEN3_4B,
        prompt_tokens=512,
        completion_tokens=512,
        micro_rows=8,
        dtype="bfloat16",
        device="cuda",
    ),
}


def case_of(values: dict[str, Any]) -> Case:
    """The case that `as_dict` described."""
    return Case(**{**values, "shape": Shape(**values["shape"])})


def step_flops(case: Case, completion_tokens: float) -> float:
    """FLOPs that one step needs, whoever does it: each prompt read once in the rollout and once in
    training, each sampled token computed once in either; a backward pass counts twice its forward.

    completion_tokens: sampled in the step.
    """
    shape = case.shape
    query, key = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    layer = shape.hidden * (2 * query + 2 * key + 3 * shape.intermediate)
    tokens = case.prompts * case.prompt_tokens + completion_tokens
    products = 2 * shape.layers * layer * tokens
    head = 2 * shape.hidden * shape.vocabulary * completion_tokens
    each = completion_tokens / case.rows
    pairs = case.prompts * case.prompt_tokens**2 / 2
    pairs += completion_tokens * (case.prompt_tokens + each / 2)
    attention = 4 * shape.layers * query * pairs
    rollout = products + head + attention
    return rollout + 3 * rollout


def write_model(case: Case, folder: Path, seed: int = 0) -> None:
    """A model folder with random weights and a tokenizer whose words are w0, w1, ..."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = case.shape
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=4096,
        pad_token_id=PAD,
        eos_token_id=STOP,
        bos_token_id=None,
        tie_word_embeddings=True,
        dtype=case.dtype,
    )
    torch.manual_seed(seed)
    with torch.device(case.device):
        model = Qwen3ForCausalLM(config).to(getattr(torch, case.dtype))
    model.save_pretrained(folder)
    del model
    if case.device == "cuda":
        torch.cuda.empty_cache()
    word_tokenizer(shape.vocabulary).save_pretrained(folder)


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer whose words are w0, w1, ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocabulary)}
    made = Tokenizer(WordLevel(words, unk_token=f"w{PAD}"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=f"w{PAD}", eos_token=f"w{STOP}", padding_side="left"
    )


def prompts_of(case: Case, steps: int, seed: int = 1) -> list[list[int]]:
    """Random prompts of all steps, one after another."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (case.prompts * steps, case.prompt_tokens)
    return torch.randint(2, case.shape.vocabulary, shape, generator=generator).tolist()


def reward(completion: list[int]) -> float:
    """Share of even token ids: cheap, and different between completions."""
    return sum(1 for token in completion if token % 2 == 0) / max(len(completion), 1)
