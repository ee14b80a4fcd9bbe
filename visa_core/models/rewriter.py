"""The rewriter: a causal LM that reads query, response and target values, and writes the response
anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from visa_core.config.vllm import VLLMSettings
from visa_core.models.encoder import TOKENIZER_FILES, ModelFolderError, reading
from visa_core.models.prompt import COMPACT_SPECIALS, PromptTemplate
from visa_core.models.tokenizer import build_tokenizer
from visa_core.rollout.engine import Engine
from visa_core.rollout.factory import make_engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.checkpoint import atomic_folder
from visa_core.types import Prompt, RolloutBatch
from visa_core.values import SCHWARTZ, ValueSpace

SETTINGS = "visa_rewriter.json"


class Rewriter:
    """A causal LM with its tokenizer, prompt template and value space."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        space: ValueSpace = SCHWARTZ,
        max_prompt: int = 512,
        max_completion: int = 1536,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.space = space
        self.max_prompt = max_prompt
        self.max_completion = max_completion
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the rewriter's tokenizer has no eos_token, so completions could never end; set one"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        template: str | Path | None = None,
        dtype: torch.dtype | None = None,
    ) -> Rewriter:
        """Load a saved rewriter or any local Hugging Face causal LM folder.

        template: overrides the saved prompt template (a path or a built-in name); a plain folder
        starts with "rewrite".
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ModelFolderError(f"{folder} is not a model folder: it has no config.json")
        if not any(folder.glob("*.safetensors")):
            raise ModelFolderError(
                f"{folder} has no *.safetensors weights; pickled weights are not loaded, convert "
                "them with save_pretrained first"
            )
        with reading(folder):
            tokenizer = _load_tokenizer(folder)
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        if lost := sorted(report["missing_keys"]):
            raise ModelFolderError(
                f"{folder}: its weights lack {len(lost)} tensors, such as {lost[0]!r}; they do not "
                "belong to its config.json"
            )
        settings = (
            json.loads((folder / SETTINGS).read_text()) if (folder / SETTINGS).is_file() else {}
        )
        if template is not None:
            prompt = PromptTemplate.load(template)
        elif "template" in settings:
            prompt = PromptTemplate.parse(settings["template"], str(folder / SETTINGS))
        else:
            prompt = PromptTemplate.load("rewrite")
        space = ValueSpace.from_dict(settings["space"]) if "space" in settings else SCHWARTZ
        limits = {key: settings[key] for key in ("max_prompt", "max_completion") if key in settings}
        return cls(model, tokenizer, prompt, space, **limits)

    @classmethod
    def small(
        cls,
        texts: Iterable[str],
        *,
        hidden: int = 128,
        layers: int = 2,
        heads: int = 4,
        intermediate: int = 384,
        max_prompt: int = 128,
        max_completion: int = 64,
        space: ValueSpace = SCHWARTZ,
        seed: int = 0,
    ) -> Rewriter:
        """A small Qwen3-architecture model from scratch, with a tokenizer built from `texts` and
        the value names.
        """
        levels = [
            f"{name} {level}"
            for name in space.names
            for level in ("+1", "+0.5", "-0.5", "-1", "neutral")
        ]
        tokenizer = build_tokenizer(
            [*texts, *levels],
            extra_specials=COMPACT_SPECIALS,
            max_length=max_prompt + max_completion,
        )
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            intermediate_size=intermediate,
            max_position_embeddings=max_prompt + max_completion,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        return cls(
            model, tokenizer, PromptTemplate.load("compact"), space, max_prompt, max_completion
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors), tokenizer and settings; the folder also loads in
        transformers and vLLM.
        """
        with atomic_folder(Path(folder)) as scratch:
            self.write(scratch)

    def write(self, folder: Path) -> None:
        """Write all files into an existing folder; `save_pretrained` does so atomically."""
        settings = {
            "template": self.template.text(),
            "space": self.space.to_dict(),
            "max_prompt": self.max_prompt,
            "max_completion": self.max_completion,
        }
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1))

    @property
    def pad_id(self) -> int:
        """Padding id; the end token where the tokenizer has no padding token."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a rewrite: the tokenizer's end token and those of the model's generation
        config.
        """
        more = self.model.generation_config.eos_token_id
        more = [] if more is None else [more] if isinstance(more, int) else list(more)
        return sorted({self.tokenizer.eos_token_id, *more})

    def engine(
        self,
        name: str = "hf",
        vllm: VLLMSettings | None = None,
        *,
        keeps_storage: bool = True,
        eager: bool = False,
    ) -> Engine:
        """An engine over this model's own weights; see `visa_core.rollout.factory.make_engine`."""
        return make_engine(
            name,
            self.model,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            max_length=self.max_prompt + self.max_completion,
            vllm=vllm,
            keeps_storage=keeps_storage,
            eager=eager,
        )

    def prompt(self, query: str, response: str, target: torch.Tensor) -> Prompt:
        """The filled prompt for target [K]; refuses one that does not fit."""
        if not response.strip():
            raise ValueError("the response to rewrite is empty")
        ids = self.template.encode(self.tokenizer, self.space, query, response, target)
        if len(ids) > self.max_prompt:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, more than max_prompt = {self.max_prompt}: "
                "shorten the response, or raise --max-prompt"
            )
        return Prompt(ids=ids, query=query, source=response, target=target)

    def completion_ids(self, text: str) -> list[int]:
        """Token ids of a reference rewrite and its end token; refuses one beyond the limit."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] + [
            self.tokenizer.eos_token_id
        ]
        if len(ids) > self.max_completion:
            raise ValueError(
                f"the completion has {len(ids)} tokens, more than max_completion = "
                f"{self.max_completion}: shorten it, or raise --max-completion"
            )
        return ids

    def decode(self, rollouts: RolloutBatch) -> list[str]:
        """Texts of a batch of rollouts."""
        return [
            self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rollouts.rows()
        ]

    def rewrite(
        self,
        queries: Sequence[str],
        responses: Sequence[str],
        targets: torch.Tensor,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        """Rewrite B responses towards targets [B, K]; greedy by default."""
        options = {
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "batch_size": batch_size,
        }
        return self.sample(queries, responses, targets, **options)[0]

    def sample(
        self,
        queries: Sequence[str],
        responses: Sequence[str],
        targets: torch.Tensor,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> tuple[list[str], torch.Tensor]:
        """Like `rewrite`, and which rewrites came to their end, [B] bool.

        The others were cut at max_completion.
        """
        rows = zip(queries, responses, targets, strict=True)
        prompts = [self.prompt(query, response, target).ids for query, response, target in rows]
        sampling = SamplingConfig(
            temperature=temperature, top_p=top_p, max_new_tokens=self.max_completion
        )
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        texts = [""] * len(prompts)
        finished = torch.zeros(len(prompts), dtype=torch.bool)
        engine = self.engine()
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rollouts = engine.generate([prompts[i] for i in chosen], 1, sampling, seed + start)
            finished[chosen] = rollouts.finished
            for i, text in zip(chosen, self.decode(rollouts), strict=True):
                texts[i] = text
        return texts, finished


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelFolderError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): copy the model's "
            "tokenizer files into it"
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
