"""A small NLI classifier whose token types say which tokens the other text shares.

The exact-match feature of Chen et al. 2017 (Reading Wikipedia to Answer Open-Domain Questions,
section 3.2) makes the comparison of names and numbers readable from the input, which a two-layer
encoder from scratch would need far more data to find.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from visa_core.models.nli_labels import NLI_LABELS

ABSENT, PRESENT = 0, 2
"""Token types: 0 and 1 are premise and hypothesis tokens absent from the other text, 2 and 3 those
present in it.
"""


def exact_match_types(
    input_ids: torch.Tensor, segments: torch.Tensor, special: torch.Tensor
) -> torch.Tensor:
    """Token types [B, T] in 0..3 from ids, segments (0 premise, 1 hypothesis) and special-or-
    padding flags, all [B, T].
    """
    same = input_ids[:, :, None] == input_ids[:, None, :]
    across = segments[:, :, None] != segments[:, None, :]
    plain = ~special.bool()
    shared = (same & across & plain[:, None, :]).any(dim=2) & plain
    return segments + PRESENT * shared.long()


def new_classifier(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden: int = 96,
    layers: int = 2,
    heads: int = 4,
    max_tokens: int = 256,
) -> BertForSequenceClassification:
    """An untrained classifier with four token types and labels in the order of NLI_LABELS."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max_tokens,
        type_vocab_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(NLI_LABELS)),
        label2id={label: index for index, label in enumerate(NLI_LABELS)},
    )
    return BertForSequenceClassification(config)
