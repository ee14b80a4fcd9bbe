"""Token ids of texts, each distinct text tokenised once; pairs composed from their parts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerBase

LIMIT = 4_000_000
"""Tokens that a memo keeps before it starts anew."""

log = logging.getLogger(__name__)
_memos: WeakValueDictionary[str, TokenMemo] = WeakValueDictionary()
Pair = tuple[str, str]


class TokenMemo:
    """Ids of texts without special tokens; what looks like one in a text is read as plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int = LIMIT) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self._ids: dict[str, list[int]] = {}
        self._tokens = 0

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; the lists are shared, so they must not be changed."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if new:
            if self._tokens > self.limit:
                self._ids, self._tokens = {}, 0
                new = list(dict.fromkeys(texts))
            rows = self.tokenizer(
                new,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            self._ids.update(zip(new, rows, strict=True))
            self._tokens += sum(map(len, rows))
        return [self._ids[text] for text in texts]

    def length(self, text: str) -> int:
        """Tokens of one text."""
        return len(self.ids([text])[0])


def memo_of(tokenizer: PreTrainedTokenizerBase) -> TokenMemo:
    """The memo of a tokenizer; tokenizers that were loaded from equal files share one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return TokenMemo(tokenizer)
    name = f"{type(tokenizer).__name__} {backend.to_str()}"
    key = hashlib.sha256(name.encode()).hexdigest()
    memo = _memos.get(key)
    if memo is None:
        memo = TokenMemo(tokenizer)
        _memos[key] = memo
    return memo


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """Model inputs of pairs, unpadded: ids, token types and special-token flags of each."""

    ids: list[list[int]]
    types: list[list[int]] | None
    special: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class PairTemplate:
    """Special tokens around a pair: first A middle B last, and the token types of the five parts.
    """

    first: list[int]
    middle: list[int]
    last: list[int]
    types: tuple[list[int], int, list[int], int, list[int]] | None

    def compose(self, pairs: Sequence[Pair], memo: TokenMemo) -> PairRows:
        """Rows of pairs from the ids of their texts."""
        firsts = memo.ids([a for a, _ in pairs])
        seconds = memo.ids([b for _, b in pairs])
        both = list(zip(firsts, seconds, strict=True))
        ids = [[*self.first, *a, *self.middle, *b, *self.last] for a, b in both]
        marks = [[1] * len(part) for part in (self.first, self.middle, self.last)]
        special = [marks[0] + [0] * len(a) + marks[1] + [0] * len(b) + marks[2] for a, b in both]
        types = None
        if self.types is not None:
            p, t_a, q, t_b, r = self.types
            types = [p + [t_a] * len(a) + q + [t_b] * len(b) + r for a, b in both]
        return PairRows(ids=ids, types=types, special=special)


class PairTokenizer:
    """Rows of pairs as the tokenizer's own call on pairs gives them, each text tokenised once.

    The template of special tokens is read off a call and compared with calls on other pairs; a
    tokenizer that does something else to a pair is asked for every pair, which is logged once.
    """

    PROBES: tuple[Pair, ...] = (("x y", "z"), ("Two words. And 3 more!", "one"), ("a", "b c d e"))

    def __init__(self, tokenizer: PreTrainedTokenizerBase, with_types: bool | None = None) -> None:
        """`with_types` asks for token types of a tokenizer that gives none by default."""
        self.tokenizer = tokenizer
        self.with_types = with_types
        self.memo = memo_of(tokenizer)
        self.template = self._find()
        self._seen = False

    def rows(self, pairs: Sequence[Pair]) -> PairRows:
        """Unpadded rows of pairs that need no truncation."""
        if self.template is not None and pairs and not self._seen:
            self._seen = True
            sample = [pairs[0], pairs[len(pairs) // 2], pairs[-1]]
            if self.template.compose(sample, self.memo) != self.by_call(sample):
                self._give_up(f"the pair {sample[0]!r}")
        if self.template is None:
            return self.by_call(pairs)
        return self.template.compose(pairs, self.memo)

    def by_call(self, pairs: Sequence[Pair]) -> PairRows:
        """Rows by the tokenizer's call on pairs."""
        encoded = self.tokenizer(
            [a for a, _ in pairs],
            [b for _, b in pairs],
            return_special_tokens_mask=True,
            return_token_type_ids=self.with_types,
            return_attention_mask=False,
            split_special_tokens=True,
            verbose=False,
        )
        return PairRows(
            ids=encoded["input_ids"],
            types=encoded.get("token_type_ids"),
            special=encoded["special_tokens_mask"],
        )

    def _find(self) -> PairTemplate | None:
        rows = self.by_call(self.PROBES[:1])
        template = _template(rows, *(len(ids) for ids in self.memo.ids(self.PROBES[0])))
        wanted = self.by_call(self.PROBES)
        if template is None or template.compose(self.PROBES, self.memo) != wanted:
            self._give_up("a pair of plain texts")
            return None
        return template

    def _give_up(self, what: str) -> None:
        self.template = None
        log.warning(
            "%s joins %s otherwise than from its two texts: every pair is tokenised as a whole",
            type(self.tokenizer).__name__,
            what,
        )


def _template(rows: PairRows, length_a: int, length_b: int) -> PairTemplate | None:
    """The template that a call on one pair shows; None where its plain tokens are not two runs."""
    ids, special = rows.ids[0], rows.special[0]
    plain = [i for i, mark in enumerate(special) if not mark]
    if len(plain) != length_a + length_b or not length_a or not length_b:
        return None
    a, b = plain[0], plain[length_a]
    end_a, end_b = a + length_a, b + length_b
    if plain != [*range(a, end_a), *range(b, end_b)]:
        return None
    parts = slice(0, a), slice(end_a, b), slice(end_b, None)
    first, middle, last = (ids[part] for part in parts)
    types = None
    if rows.types is not None:
        row = rows.types[0]
        types = (row[parts[0]], row[a], row[parts[1]], row[b], row[parts[2]])
    return PairTemplate(first=first, middle=middle, last=last, types=types)
