"""Heads of sequence classifiers on the hidden states that they read, without the padded batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from visa_core.models.packed_rows import PackedRows

Head = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """logits [B, C] of a model from one hidden state [B, D] a row."""

    logits: Head
    mean: bool = False
    """Whether that state is the mean of the row's tokens; otherwise the first one's."""


def pooled_by_the_encoder(model: PreTrainedModel, first_BD: torch.Tensor) -> torch.Tensor:
    """BERT: the encoder's pooler, then a linear layer."""
    return model.classifier(model.dropout(model.base_model.pooler(first_BD[:, None])))


def classifier_module(model: PreTrainedModel, first_BD: torch.Tensor) -> torch.Tensor:
    """RoBERTa and its relatives: a module that takes the first of the tokens it is given."""
    return model.classifier(first_BD[:, None])


def prediction_head(model: PreTrainedModel, pooled_BD: torch.Tensor) -> torch.Tensor:
    """ModernBERT: its prediction head, then a linear layer."""
    return model.classifier(model.drop(model.head(pooled_BD)))


def two_linears(model: PreTrainedModel, first_BD: torch.Tensor) -> torch.Tensor:
    """DistilBERT: a linear layer, ReLU, another one."""
    return model.classifier(model.dropout(model.pre_classifier(first_BD).relu()))


HEADS: dict[str, Head] = {
    "BertForSequenceClassification": pooled_by_the_encoder,
    "RobertaForSequenceClassification": classifier_module,
    "XLMRobertaForSequenceClassification": classifier_module,
    "CamembertForSequenceClassification": classifier_module,
    "ElectraForSequenceClassification": classifier_module,
    "ModernBertForSequenceClassification": prediction_head,
    "DistilBertForSequenceClassification": two_linears,
}


def head_kind(model: PreTrainedModel) -> HeadKind | None:
    """How a classifier reads its encoder; None for classes that are not known here."""
    logits = HEADS.get(type(model).__name__)
    if logits is None:
        return None
    return HeadKind(
        logits=logits, mean=getattr(model.config, "classifier_pooling", "cls") == "mean"
    )


def row_means(hidden_ND: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """Mean hidden state of each row, [B, D]."""
    lengths = rows.cu_seqlens.diff()
    sums_BD = hidden_ND.new_zeros(len(lengths), hidden_ND.shape[1])
    return sums_BD.index_add_(0, rows.row_N, hidden_ND) / lengths[:, None]
