"""Cut texts for entailment scoring: sentences of a hypothesis, chunks of a premise. Nothing is ever
dropped.

Every function keeps all words of its input, in order; `count` is the tokenizer's own token count of
a piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Count = Callable[[str], int]

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st vs etc approx fig no vol inc ltd co e.g i.e cf dept gen col sgt"
    " jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_END = re.compile(r"[.!?]+[\"')\]\u201d\u2019]*(?=\s)|[\u3002\uff01\uff1f]+|\n+")
_WORDLIKE = re.compile(r"[^\W_]")
_LIST_MARK = re.compile(r"^\(?(\d{1,2}|[a-zA-Z])[.)]$")


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, stripped, in order; [] for blank text.

    A piece without a letter or a digit joins the piece before it (or, at the start, the one after);
    list marks such as "2." join what follows; common abbreviations, initials and decimals end no
    sentence.
    """
    pieces: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if _ends_sentence(text[start : match.start()], match.group()):
            pieces.append(text[start : match.end()].strip())
            start = match.end()
    pieces.append(text[start:].strip())
    return _merge_fragments([piece for piece in pieces if piece])


def _ends_sentence(before: str, mark: str) -> bool:
    if mark != ".":
        return True
    words = before.split()
    if not words:
        return True
    last = words[-1].lstrip("(\"'")
    if last.lower() in _ABBREVIATIONS:
        return False
    return not (len(last) == 1 and last.isalpha() and last.isupper() and last != "I")


def _merge_fragments(pieces: list[str]) -> list[str]:
    merged: list[str] = []
    held = ""
    for piece in pieces:
        piece = f"{held} {piece}".strip()
        held = ""
        if _LIST_MARK.match(piece) or (not merged and not _WORDLIKE.search(piece)):
            held = piece
        elif merged and not _WORDLIKE.search(piece):
            merged[-1] = f"{merged[-1]} {piece}"
        else:
            merged.append(piece)
    if held and merged:
        merged[-1] = f"{merged[-1]} {held}"
    elif held:
        merged.append(held)
    return merged


def fit_pieces(text: str, budget: int, count: Count) -> list[str]:
    """`text` in consecutive pieces of at most `budget` tokens, cut between words, inside a word
    only where it alone is too long.
    """
    if budget < 1:
        raise ValueError(f"a text cannot be cut into pieces of {budget} tokens")
    pieces: list[str] = []
    rest = text.strip()
    while rest and count(rest) > budget:
        head = _longest_head(rest, budget, count)
        pieces.append(rest[:head].strip())
        rest = rest[head:].strip()
    return [*pieces, rest] if rest else pieces


def _longest_head(text: str, budget: int, count: Count) -> int:
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    best = _bisect(ends, text, budget, count)
    if best:
        return best
    inside = list(range(1, ends[0]))
    # One character can be several tokens (byte fallback): it then is the smallest piece.
    return _bisect(inside, text, budget, count) or 1


def _bisect(ends: list[int], text: str, budget: int, count: Count) -> int:
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        if count(text[: ends[middle]]) <= budget:
            low = middle + 1
        else:
            high = middle
    return ends[low - 1] if low else 0


def hypothesis_sentences(text: str, budget: int, count: Count) -> list[str]:
    """Sentences of `text`, each cut further where it has more than `budget` tokens."""
    return [
        piece for sentence in split_sentences(text) for piece in fit_pieces(sentence, budget, count)
    ]


def premise_chunks(text: str, budget: int, count: Count) -> list[str]:
    """Consecutive chunks of whole sentences, each as long as `budget` tokens allow; longer
    sentences are cut.
    """
    chunks: list[str] = []
    for piece in hypothesis_sentences(text, budget, count):
        joined = f"{chunks[-1]} {piece}" if chunks else piece
        if chunks and count(joined) <= budget:
            chunks[-1] = joined
        else:
            chunks.append(piece)
    return chunks
