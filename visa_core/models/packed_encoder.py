"""Hugging Face encoders on packed rows: no padding, attention within each row.

Transformers hands unknown keywords of a model's call down to its attention function, which is how
the row bounds get there. Whether an encoder can be read so is not guessed: it is tried once, on two
short rows, against its own padded batch.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from visa_core.models.bert_layers import BertLayers
from visa_core.models.packed_rows import PackedRows
from visa_core.models.prepacked_linear import why_no_bfloat16
from visa_kernels import packed_attention

NAME = "visa_packed_rows"
"""What `attn_implementation` is called while packed rows are read."""

TOLERANCE = 1e-3
"""Of the trial's hidden states, relative to the largest: far above rounding, far below an error."""

TRIAL_TOKENS = 150
"""Longer than the windows in use, so that the trial sees them act."""

log = logging.getLogger(__name__)
_rows: ContextVar[PackedRows | None] = ContextVar("rows", default=None)


class PackedEncoder:
    """Hidden states of packed rows from a frozen or resting encoder; no gradients.

    Encoders built of BERT's layers run on `BertLayers`; others run as they are, through a
    registered attention function. `why_not` says why an encoder does neither, None if it does.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.first_position = _first_position(model)
        self._layers: dict[torch.dtype, BertLayers] = {}
        self._tried = False
        self._why_not: str | None = None

    def __reduce__(self) -> tuple[type, tuple[PreTrainedModel]]:
        """Copies start anew: weights in oneDNN's layout cannot be copied."""
        return PackedEncoder, (self.model,)

    @property
    def why_not(self) -> str | None:
        """Tried at the first question, in evaluation mode; a refusal is logged once."""
        if not self._tried:
            self._tried = True
            self._why_not = _why_not_structurally(self.model) or self._trial()
            if self._why_not is not None:
                kind = type(self.model).__name__
                log.warning("%s reads padded batches: %s", kind, self._why_not)
        return self._why_not

    @torch.inference_mode()
    def hidden(self, rows: PackedRows, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Last hidden states [N, D].

        dtype  of the products; another than float32 only where `why_not_bfloat16` is None
        """
        if BertLayers.why_not(self.model) is None:
            return self._bert_layers(dtype).hidden(rows)
        assert dtype == torch.float32
        with _packed(self.model, rows):
            inputs = {"input_ids": rows.ids_N[None], "position_ids": rows.position_N[None]}
            if rows.types_N is not None:
                inputs["token_type_ids"] = rows.types_N[None]
            return self.model(**inputs).last_hidden_state[0]

    @torch.inference_mode()
    def first(self, rows: PackedRows, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Last hidden states of each row's first token, [B, D]; see `hidden`."""
        if BertLayers.why_not(self.model) is None:
            return self._bert_layers(dtype).first(rows)
        return self.hidden(rows, dtype)[rows.first_B]

    @property
    def why_not_bfloat16(self) -> str | None:
        """Why products in bfloat16 are not to be had, or would not be faster; None if they are."""
        if (why := BertLayers.why_not(self.model)) is not None:
            return why
        return why_no_bfloat16(next(self.model.parameters()).device.type)

    def _bert_layers(self, dtype: torch.dtype) -> BertLayers:
        layers = self._layers.get(dtype)
        if layers is None or layers.is_stale():
            layers = self._layers[dtype] = BertLayers(self.model, dtype)
        return layers

    @torch.inference_mode()
    def _trial(self) -> str | None:
        """Two rows packed and padded; what differs, or None."""
        words = self.model.get_input_embeddings()
        vocabulary, device, pad = words.num_embeddings, words.weight.device, _pad_of(self.model)
        room = getattr(self.model.config, "max_position_embeddings", None) or TRIAL_TOKENS
        length = max(2, min(TRIAL_TOKENS, room - self.first_position))
        plain = [token for token in range(vocabulary) if token != pad]
        long = [plain[7 * i % len(plain)] for i in range(length)]
        short = long[: max(1, length // 3)]
        batch = torch.tensor([short + [pad] * (length - len(short)), long])
        mask = torch.ones_like(batch)
        mask[0, len(short) :] = 0
        was_training = self.model.training
        self.model.eval()
        try:
            padded = self.model(input_ids=batch.to(device), attention_mask=mask.to(device))
            rows = PackedRows.of(
                [short, long], first_position=self.first_position, device=device
            )
            packed_ND = self.hidden(rows)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            return f"packed rows do not go through it ({type(error).__name__}: {error})"
        finally:
            self.model.train(was_training)
        padded_BLD = padded.last_hidden_state
        want_ND = torch.cat([padded_BLD[0, : len(short)], padded_BLD[1]])
        error = (packed_ND - want_ND).abs().max() / want_ND.abs().max()
        if not error < TOLERANCE:
            return f"packed rows give other hidden states (relative difference {error:.1e})"
        return None


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of transformers for packed rows: [1, H, N, D] -> [1, N, H, D]."""
    rows = _rows.get()
    if rows is None or dropout or len(query) != 1:
        raise ValueError(f"{NAME} reads one packed row, without dropout")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = packed_attention(
        q,
        k,
        v,
        rows.cu_seqlens,
        # Transformers counts the token itself into a window.
        window=None if sliding_window is None else sliding_window - 1,
        scale=scaling,
        max_seqlen=rows.longest,
    )
    return out[None], None


def attention_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Mask function of transformers: none for packed rows, otherwise that of sdpa."""
    return None if _rows.get() else ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, attention_mask)


@contextmanager
def _packed(model: PreTrainedModel, rows: PackedRows) -> Iterator[None]:
    """The model's attention reads packed rows meanwhile."""
    before = model.config._attn_implementation
    token = _rows.set(rows)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _rows.reset(token)


def _why_not_structurally(model: PreTrainedModel) -> str | None:
    if model.config.is_encoder_decoder or getattr(model.config, "is_decoder", False):
        return "it is not an encoder"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its positions cannot be given"
    if getattr(model.config, "relative_attention", False):
        return "its attention adds relative positions (DeBERTa's disentangled attention)"
    if not model._supports_attention_backend:
        return "its attention cannot be replaced through transformers' AttentionInterface"
    return None


def _first_position(model: PreTrainedModel) -> int:
    """RoBERTa and its relatives count positions from pad_token_id + 1."""
    embeddings = getattr(model, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return embeddings.padding_idx + 1
    return 0


def _pad_of(model: PreTrainedModel) -> int:
    return model.config.pad_token_id or 0
