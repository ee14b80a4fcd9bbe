"""A word-level tokenizer built from texts, without loss: unknown words fall back to bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<cls>",
    "sep_token": "<sep>",
    "mask_token": "<mask>",
}
_MARKS = ".,;:?!'\"()"
_BLANK = "▁"
_ALONE = f"{_MARKS}{_BLANK}"
"""Pieces of one character. A blank that no word follows, as before a special token, is one token
and not the three bytes of its mark.
"""


def build_tokenizer(
    texts: Iterable[str],
    *,
    extra_specials: tuple[str, ...] = (),
    max_words: int = 30_000,
    max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Unigram tokenizer whose pieces are the words of `texts` (most frequent first), punctuation
    marks, the blank and 256 bytes.

    A known word is one token; any other text becomes bytes, so that decode(encode(text)) == text,
    but for one blank at the very start, U+2581 (which stands for a blank), and blanks around
    special tokens that the text spells out.
    """
    counts = Counter(
        piece for text in texts for word in text.split() for piece in word_pieces(word)
    )
    pieces = counts.most_common(max_words)
    total = sum(count for _, count in pieces) or 1
    specials = [*SPECIALS.values(), *extra_specials]
    vocabulary = [(special, 0.0) for special in specials]
    vocabulary += [(mark, -8.0) for mark in _ALONE]
    vocabulary += [(word, math.log(n / total)) for word, n in pieces if word not in _ALONE]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    backend = Tokenizer(
        models.Unigram(vocabulary, unk_id=specials.index("<unk>"), byte_fallback=True)
    )
    # without the split a text that spells out "<0x41>" would be taken for that byte
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split("<0x", "isolated"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(_BLANK, " "),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=list(extra_specials),
        **SPECIALS,
    )


def word_pieces(word: str) -> list[str]:
    """A word with its leading blank mark, and the punctuation at its end as pieces of their own."""
    marks = []
    while len(word) > 1 and word[-1] in _MARKS:
        marks.append(word[-1])
        word = word[:-1]
    return [f"{_BLANK}{word}", *reversed(marks)]
