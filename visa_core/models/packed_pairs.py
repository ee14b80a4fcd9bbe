"""Logits of a sequence classifier for pairs of texts, packed: each text tokenised once, no padding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from visa_core.models.classifier_heads import HeadKind, head_kind, row_means
from visa_core.models.exact_match import TokenFeatures
from visa_core.models.packed_encoder import PackedEncoder
from visa_core.models.packed_rows import PackedRows, token_batches
from visa_core.models.token_memo import PairRows, PairTokenizer

log = logging.getLogger(__name__)


class PackedPairs:
    """A classifier whose encoder reads packed rows; `why_not` says why it cannot be one."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        features: TokenFeatures | None = None,
    ) -> None:
        """`features` give the token types; others come from the tokenizer, where it has any."""
        self.model = model
        self.features = features
        self.tokenizer = PairTokenizer(tokenizer, None if features is None else True)
        self.encoder = PackedEncoder(model.base_model)
        self.kind = head_kind(model)
        self.why_not = self._why_not()

    def _why_not(self) -> str | None:
        if self.kind is None:
            name = type(self.model).__name__
            log.warning("%s reads padded batches: its head is not known here", name)
            return "its head is not known here"
        return self.encoder.why_not

    @torch.inference_mode()
    def logits(
        self, pairs: Sequence[tuple[str, str]], dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Logits [R, C] float32 on the CPU, in the order given, of pairs that fit the model.

        dtype  of the encoder's products; the head computes in the model's own
        """
        assert self.why_not is None and self.kind is not None and not self.model.training
        every = self.tokenizer.rows(pairs)
        device = next(self.model.parameters()).device
        out = torch.empty(len(pairs), self.model.config.num_labels)
        width = self.model.config.hidden_size
        for picked in token_batches([len(row) for row in every.ids], device, width):
            rows = self._packed(every, picked, device)
            pooled = self._pooled(rows, self.kind, dtype)
            out[picked] = self.kind.logits(self.model, pooled).float().cpu()
        return out

    def _pooled(self, rows: PackedRows, kind: HeadKind, dtype: torch.dtype) -> torch.Tensor:
        if kind.mean:
            return row_means(self.encoder.hidden(rows, dtype), rows)
        return self.encoder.first(rows, dtype)

    def _packed(self, every: PairRows, picked: list[int], device: torch.device) -> PackedRows:
        rows = PackedRows.of(
            [every.ids[i] for i in picked],
            None if every.types is None else [every.types[i] for i in picked],
            first_position=self.encoder.first_position,
            device=device,
        )
        if self.features is None:
            return rows
        special_N = torch.tensor([mark for i in picked for mark in every.special[i]], device=device)
        assert rows.types_N is not None
        return rows.with_types(
            self.features.packed(rows.ids_N, rows.types_N, special_N, rows.row_N)
        )
