"""What Detector and Translator share: an encoder, one score per dimension, and a folder on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from visa_core.models.classifier_heads import row_means
from visa_core.models.encoder import ModelFolderError, TextEncoder, reading
from visa_core.models.packed_rows import PackedRows, token_batches
from visa_core.training.checkpoint import atomic_folder
from visa_core.values import SCHWARTZ, VALUEEVAL20, ValueSpace

Pooling = Literal["attention", "mean"]


class PooledHead(nn.Module):
    """One score per output dimension from the hidden states of a text.

    mean: a linear map of the average token. attention: each dimension weighs the tokens by itself,
    so that a value said in one clause of a long text is not washed out by the others.
    """

    def __init__(self, hidden_size: int, outputs: int, pooling: Pooling) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, outputs)
        self.query = nn.Linear(hidden_size, outputs) if pooling == "attention" else None
        nn.init.normal_(self.score.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.score.bias)
        if self.query is not None:
            nn.init.zeros_(self.query.weight)
            nn.init.zeros_(self.query.bias)

    def forward(self, hidden_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Scores [B, K] of hidden states [B, L, D] under a mask [B, L] bool."""
        if self.query is None:
            weight_BL = mask_BL / mask_BL.sum(1, keepdim=True)
            return self.score((hidden_BLD * weight_BL[..., None]).sum(1))
        focus_BLK = self.query(hidden_BLD).masked_fill(~mask_BL[..., None], float("-inf"))
        return (focus_BLK.softmax(1) * self.score(hidden_BLD)).sum(1)

    def packed(self, hidden_ND: torch.Tensor, rows: PackedRows) -> torch.Tensor:
        """The same of rows one behind the other, [B, K]."""
        if self.query is None:
            return self.score(row_means(hidden_ND, rows))
        focus_NK, score_NK, row_N = self.query(hidden_ND), self.score(hidden_ND), rows.row_N
        zeros_BK = score_NK.new_zeros(len(rows.first_B), score_NK.shape[1])
        index_NK = row_N[:, None].expand_as(focus_NK)
        peak_BK = zeros_BK.scatter_reduce(0, index_NK, focus_NK, "amax", include_self=False)
        weight_NK = (focus_NK - peak_BK[row_N]).exp()
        total_BK = zeros_BK.index_add(0, row_N, weight_NK)
        return zeros_BK.index_add(0, row_N, weight_NK * score_NK) / total_BK


@dataclass(frozen=True, kw_only=True)
class VectorModelConfig:
    """What a folder's config.json holds beside the model type."""

    space: dict
    pooling: Pooling
    max_length: int
    category_head: bool = False
    vector_trained: bool = True
    category_threshold: float = 0.5


class VectorModel(nn.Module):
    """Base of the models that turn texts into a value vector with entries in [-limit, limit].

    The raw score is trained; predictions are clamped to the scale, so its ends can be reached
    exactly.
    """

    kind: ClassVar[str]
    limit: ClassVar[float]

    def __init__(self, encoder: TextEncoder, config: VectorModelConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.space = ValueSpace.from_dict(config.space)
        self.vector_head = PooledHead(encoder.hidden_size, len(self.space), config.pooling)
        self.category_head = (
            PooledHead(encoder.hidden_size, len(VALUEEVAL20), config.pooling)
            if config.category_head
            else None
        )

    @classmethod
    def create(
        cls,
        backbone: str,
        *,
        texts: Sequence[str] = (),
        space: ValueSpace = SCHWARTZ,
        pooling: Pooling = "attention",
        max_length: int = 256,
        category_head: bool = False,
        hidden_size: int = 128,
        layers: int = 2,
    ) -> Self:
        """A model on a fresh or pretrained backbone; `texts` give the built-in one its
        vocabulary.
        """
        encoder = TextEncoder.from_backbone(
            backbone, texts, max_length, hidden_size=hidden_size, layers=layers
        )
        config = VectorModelConfig(
            space=space.to_dict(),
            pooling=pooling,
            max_length=encoder.max_length,
            category_head=category_head,
        )
        return cls(encoder, config)

    def forward(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Raw value scores [B, K] and category logits [B, 20] (None without that head) of token
        rows.
        """
        hidden_BLD, mask_BL = self.encoder(rows)
        logits = None if self.category_head is None else self.category_head(hidden_BLD, mask_BL)
        return self.vector_head(hidden_BLD, mask_BL), logits

    @torch.no_grad()
    def _predict_rows(
        self, rows: Sequence[Sequence[int]], batch_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clamped values [B, K] and category probabilities [B, 20 or 0], in the rows' order, on
        the CPU.
        """
        was_training = self.training
        self.eval()
        values = torch.zeros(len(rows), len(self.space))
        categories = torch.zeros(len(rows), 0 if self.category_head is None else len(VALUEEVAL20))
        for picked in self._batches(rows, batch_size):
            scores, logits = self._raw([rows[i] for i in picked])
            values[picked] = scores.float().clamp(-self.limit, self.limit).cpu()
            if logits is not None:
                categories[picked] = logits.float().sigmoid().cpu()
        self.train(was_training)
        return values, categories

    def _batches(self, rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
        """Indices of rows: by token budget where they are packed, else of similar length."""
        lengths = [len(row) for row in rows]
        if self.encoder.packed.why_not is None:
            return token_batches(lengths, self.encoder.device, self.encoder.hidden_size)
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def _raw(
        self, rows: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`forward` for predictions: packed where the encoder can be read so."""
        if self.encoder.packed.why_not is not None:
            return self(rows)
        hidden_ND, packed = self.encoder.read_packed(rows)
        head = self.category_head
        logits = None if head is None else head.packed(hidden_ND, packed)
        return self.vector_head.packed(hidden_ND, packed), logits

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder aside and rename it, so that a crash never leaves half a model."""
        with atomic_folder(Path(folder)) as scratch:
            self.write(scratch)

    def write(self, folder: Path) -> None:
        """Write the files of the model into an existing folder."""
        self.encoder.save(folder / "encoder")
        heads = {
            k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("encoder.")
        }
        save_file(heads, folder / "heads.safetensors")
        record = {"model_type": f"visa-{self.kind}", **asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load what `save_pretrained` wrote, in evaluation mode. Raises ModelFolderError naming
        what is wrong.
        """
        folder = Path(folder)
        config = _read_config(folder, cls.kind)
        if not (folder / "heads.safetensors").is_file():
            raise ModelFolderError(
                f"{cls.kind} folder {folder} has no heads.safetensors; it is incomplete"
            )
        model = cls(TextEncoder.from_folder(folder / "encoder", config.max_length), config)
        with reading(folder):
            heads = load_file(folder / "heads.safetensors")
        missing, unexpected = model.load_state_dict(heads, strict=False)
        missing = [name for name in missing if not name.startswith("encoder.")]
        if missing or unexpected:
            raise ModelFolderError(
                f"{folder}/heads.safetensors does not fit its config.json: "
                f"missing {missing}, unexpected {list(unexpected)}"
            )
        return model.eval()


def _read_config(folder: Path, kind: str) -> VectorModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFolderError(f"{folder} is not a {kind} folder: it has no config.json")
    with reading(folder):
        record = json.loads(path.read_text(encoding="utf-8"))
    found = record.pop("model_type", None)
    if found != f"visa-{kind}":
        raise ModelFolderError(
            f"{folder} holds a model of type {found!r}, not a {kind} ('visa-{kind}')"
        )
    known = {field.name for field in fields(VectorModelConfig)}
    if unknown := sorted(set(record) - known):
        raise ModelFolderError(f"{path} has unknown keys: {', '.join(unknown)}")
    return VectorModelConfig(**record)
