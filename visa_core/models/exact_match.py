"""A small NLI classifier whose token types say what a two-layer encoder from scratch would be slow
to find.

Two features of each token, read off the pair:

- exact match (Chen et al. 2017, Reading Wikipedia to Answer Open-Domain Questions, section 3.2):
  the token occurs in the other text too. Names and numbers that differ then stand out.
- unusual neighbour: the token hardly ever followed the one before it in the training texts. Broken
  text then stands out, which a policy trained against the classifier would otherwise learn to
  write.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from visa_core.models.nli_labels import NLI_LABELS

PRESENT, UNUSUAL = 2, 4
"""Token type = segment (0 premise, 1 hypothesis) + PRESENT if in the other text + UNUSUAL if oddly
placed.
"""
TYPES = 8
FILE = "usual_bigrams.safetensors"


class TokenFeatures:
    """Token types of pairs. `usual` [M] int64 holds the sorted keys previous * vocab + token of
    usual neighbours.
    """

    def __init__(self, usual: torch.Tensor, vocab: int, edge: int) -> None:
        self.usual = usual
        self.vocab = vocab
        self.edge = edge

    @classmethod
    def fit(
        cls,
        tokenizer: PreTrainedTokenizerFast,
        texts: Iterable[str],
        *,
        share: float = 0.01,
        least: int = 2,
    ) -> TokenFeatures:
        """Learn usual neighbours: seen `least` times, and `share` of what follows the first or of
        what precedes the second.

        The share keeps out what damaged training texts contain by chance. Boundaries of a text
        count as a token.
        """
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        edge, vocab = tokenizer.sep_token_id, len(tokenizer)
        stream = torch.tensor([token for row in ids if row for token in (edge, *row)] + [edge])
        keys, counts = torch.unique(stream[:-1] * vocab + stream[1:], return_counts=True)
        first, second = keys // vocab, keys % vocab
        after, before = torch.zeros(vocab), torch.zeros(vocab)
        after.index_add_(0, first, counts.float())
        before.index_add_(0, second, counts.float())
        common = counts >= share * torch.minimum(after[first], before[second])
        return cls(keys[common & (counts >= least)], vocab, edge)

    def __call__(
        self, input_ids: torch.Tensor, segments: torch.Tensor, special: torch.Tensor
    ) -> torch.Tensor:
        """Types [B, T] in 0..7 from ids, segments and special-or-padding flags, all [B, T].

        Special tokens count as the boundary that `fit` saw; the separator after a text tells
        whether the text ended well.
        """
        plain = ~special.bool()
        same = input_ids[:, :, None] == input_ids[:, None, :]
        across = segments[:, :, None] != segments[:, None, :]
        shared = (same & across & plain[:, None, :]).any(dim=2) & plain
        return segments + PRESENT * shared.long() + UNUSUAL * self._unusual(input_ids, plain).long()

    def packed(
        self,
        ids_N: torch.Tensor,
        segments_N: torch.Tensor,
        special_N: torch.Tensor,
        row_N: torch.Tensor,
    ) -> torch.Tensor:
        """The same types [N] for rows one behind the other; row_N [N] says which one."""
        plain_N = ~special_N.bool()
        key_N = row_N * (ids_N.max() + 1) + ids_N
        shared_N = torch.zeros_like(plain_N)
        ours_N = plain_N & (segments_N == 0)
        theirs_N = plain_N & (segments_N != 0)
        shared_N[ours_N] = torch.isin(key_N[ours_N], key_N[theirs_N])
        shared_N[theirs_N] = torch.isin(key_N[theirs_N], key_N[ours_N])
        unusual_N = self._unusual(ids_N[None], plain_N[None])[0]
        unusual_N[1:] &= row_N[1:] == row_N[:-1]
        return segments_N + PRESENT * shared_N.long() + UNUSUAL * unusual_N.long()

    def _unusual(self, input_ids: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        tokens = input_ids.masked_fill(~plain, self.edge)
        keys = tokens[:, :-1] * self.vocab + tokens[:, 1:]
        known = torch.isin(keys, self.usual.to(keys.device)) | (~plain[:, :-1] & ~plain[:, 1:])
        return torch.cat([torch.zeros_like(known[:, :1]), ~known], dim=1)

    def save(self, folder: Path) -> None:
        """Write the table of usual neighbours into a model folder."""
        sizes = torch.tensor([self.vocab, self.edge])
        save_file({"usual": self.usual, "sizes": sizes}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> TokenFeatures | None:
        """The table of a model folder; None where it has none, as every other classifier."""
        if not (folder / FILE).is_file():
            return None
        tensors = load_file(folder / FILE)
        vocab, edge = tensors["sizes"].tolist()
        return cls(tensors["usual"], vocab, edge)


def new_classifier(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    max_tokens: int = 256,
) -> BertForSequenceClassification:
    """An untrained classifier for the types above, with labels in the order of NLI_LABELS.

    Weights are drawn wider than BERT's: at this width a standard deviation of 0.02 learns slowly.
    """
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max_tokens,
        type_vocab_size=TYPES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(NLI_LABELS)),
        label2id={label: index for index, label in enumerate(NLI_LABELS)},
    )
    return BertForSequenceClassification(config)
