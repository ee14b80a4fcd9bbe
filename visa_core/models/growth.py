"""Models of a value space grown to a larger one: old rows kept, new rows and words added.

Nothing is learnt here: what a grown model says of old values and old words is what it said before.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from visa_core.models.encoder import TextEncoder
from visa_core.models.rewriter import Rewriter
from visa_core.models.tokenizer import word_pieces
from visa_core.models.vector_head import PooledHead, VectorModel
from visa_core.value_space import ValueSpace

Model = TypeVar("Model", bound=VectorModel)


def kept_positions(old: ValueSpace, new: ValueSpace) -> list[int]:
    """Where the old dimensions stand in the new space.

    Raises ValueError when one of them is gone, or when nothing is new.
    """
    gone = [name for name in old.names if name not in new.names]
    if gone:
        raise ValueError(
            f"the value space {new.name!r} lacks {', '.join(gone)} of {old.name!r}: an extended "
            "space must keep every old dimension under its name"
        )
    if len(new) == len(old):
        raise ValueError(f"the value space {new.name!r} has no dimension that {old.name!r} lacks")
    return [new.names.index(name) for name in old.names]


@torch.no_grad()
def grown_scorer(model: Model, space: ValueSpace, texts: Sequence[str] = ()) -> Model:
    """A detector or translator of `space` that reads old values as `model` does.

    texts: their frequent words join the vocabulary where the tokenizer breaks them up; for
    tokenizers that were built from training texts. New weights are drawn from torch's generator.
    """
    positions = kept_positions(model.space, space)
    backbone = copy.deepcopy(model.encoder.model)
    tokenizer = with_words(model.encoder.tokenizer, texts) if texts else model.encoder.tokenizer
    grow_embeddings(backbone, len(tokenizer))
    encoder = TextEncoder(backbone, tokenizer, model.encoder.max_length)
    grown = type(model)(encoder, replace(model.config, space=space.to_dict()))
    grown.to(model.encoder.device)
    _copy_rows(model.vector_head, grown.vector_head, positions)
    if model.category_head is not None:
        assert grown.category_head is not None
        grown.category_head.load_state_dict(model.category_head.state_dict())
    return grown.train(model.training)


def _copy_rows(old: PooledHead, new: PooledHead, positions: list[int]) -> None:
    for one, two in ((old.score, new.score), (old.query, new.query)):
        if one is not None and two is not None:
            two.weight[positions] = one.weight
            two.bias[positions] = one.bias


def grown_rewriter(rewriter: Rewriter, space: ValueSpace, texts: Sequence[str] = ()) -> Rewriter:
    """A rewriter whose prompts name the values of `space`; see `grown_scorer` for `texts`.

    The names of the new values are among the words. It has yet to learn what they mean: `visa train
    sft` and `visa train grpo` go on from it.
    """
    kept_positions(rewriter.space, space)
    model = copy.deepcopy(rewriter.model)
    tokenizer = rewriter.tokenizer
    if texts:
        tokenizer = with_words(tokenizer, [*texts, *(" ".join(space.names),) * 2])
    with torch.no_grad():
        grow_embeddings(model, len(tokenizer))
    limits = {"max_prompt": rewriter.max_prompt, "max_completion": rewriter.max_completion}
    return Rewriter(model, tokenizer, rewriter.template, space, **limits)


def grow_embeddings(model: PreTrainedModel, size: int) -> None:
    """Embeddings (and a head) of at least `size` tokens; new rows as wide as the old ones."""
    before = model.get_input_embeddings().weight
    old = len(before)
    if size <= old:
        return
    spread = before.float().std()
    model.resize_token_embeddings(size, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight[old:], std=float(spread))


def with_words(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], min_count: int = 2
) -> PreTrainedTokenizerFast:
    """The tokenizer with the frequent words of `texts` that it breaks up, each one token at the end
    of the vocabulary; texts of old words keep their tokens.

    Raises ValueError for a tokenizer that is no vocabulary of whole words.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, vocabulary = backend["model"].get("type"), backend["model"]["vocab"]
    if kind == "WordPiece":
        words = _split_words(tokenizer.backend_tokenizer, texts)
        new = [w for w, n in words.most_common() if n >= min_count and w not in vocabulary]
        vocabulary.update({word: len(vocabulary) + i for i, word in enumerate(new)})
    elif kind == "Unigram":
        known = {piece for piece, _ in vocabulary}
        words = Counter(piece for text in texts for w in text.split() for piece in word_pieces(w))
        new = [w for w, n in words.most_common() if n >= min_count and w not in known]
        total = max(1, sum(words.values()))
        vocabulary += [[word, math.log(words[word] / total)] for word in new]
    else:
        raise ValueError(
            f"words cannot be added to a {kind} tokenizer: its pieces already spell every word; "
            "leave --add-words out"
        )
    grown = copy.deepcopy(tokenizer)
    grown._tokenizer = Tokenizer.from_str(json.dumps(backend))
    return grown


def _split_words(backend: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in dict.fromkeys(texts):
        plain = backend.normalizer.normalize_str(text) if backend.normalizer else text
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain))
    return counts
