"""Tokenizer for models trained from scratch: whole words where known, characters for the rest."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_word_tokenizer(
    texts: Iterable[str], max_words: int = 8000, min_count: int = 2
) -> PreTrainedTokenizerFast:
    """A lower-case tokenizer whose vocabulary is the frequent words of `texts` and every character
    seen.

    A word outside the vocabulary becomes its longest known pieces, down to single characters, so
    only characters that never occurred (nor are printable ASCII) turn into [UNK].
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in dict.fromkeys(texts):
        words = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    characters = sorted(
        {*string.printable.lower().split()[0], *(c for word in counts for c in word)}
    )
    pieces = [*characters, *(f"##{c}" for c in characters)]
    words = [word for word, n in counts.most_common(max_words) if n >= min_count]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *pieces, *words]))}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1000)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
