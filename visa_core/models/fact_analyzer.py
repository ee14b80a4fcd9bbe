"""Fact analyzer: how far two texts entail each other, by any NLI sequence classifier.

Shapes: B pairs, R scored pieces (after splitting and without repeats), T tokens.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from visa_core.models.encoder import TOKENIZER_FILES, ModelFolderError, reading
from visa_core.models.exact_match import TokenFeatures
from visa_core.models.nli_labels import label_order
from visa_core.models.packed_pairs import PackedPairs
from visa_core.models.sentences import hypothesis_sentences, premise_chunks, split_sentences
from visa_core.models.token_memo import memo_of
from visa_core.models.two_readings import TwoReadings
from visa_core.training.checkpoint import atomic_folder
from visa_core.types import Consistency
from visa_kernels import dedupe_pairs

Split = Literal["auto", "sentence"]
Direction = Literal["rewrite_entails_source", "source_entails_rewrite"]
Precision = Literal["float32", "bfloat16"]
Pair = tuple[str, str]

SETTINGS_KEY = "visa_nli"
"""Key of config.json that keeps the settings below beside the model's own."""

_TOKENIZER_FILES = (*TOKENIZER_FILES, "spm.model")
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet")


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AnalyzerSettings:
    """How pairs are cut and read."""

    split: Split = "auto"
    """auto: only pairs past the model's limit are cut into premise chunks and hypothesis sentences.
    sentence: hypotheses are always scored sentence by sentence (SummaC-ZS, Laban et al. 2022),
    which grades partly kept facts.
    """
    direction: Direction = "rewrite_entails_source"
    """What `fwd` means. The paper's appendix has P(rewrite entails source); a public summary has
    them the other way round.
    """
    max_tokens: int | None = None
    """Longest pair in tokens; None takes the model's own limit."""
    precision: Precision = "float32"
    """bfloat16: products of the encoder in bfloat16, and pairs whose most probable label is in
    doubt once more in float32 (TwoReadings says what is guaranteed and what estimated). It serves
    encoders built of BERT's layers where bfloat16 is faster; elsewhere float32 is used and the log
    says why. Where it is run is no matter of the model: the folder does not keep it.
    """

    def __post_init__(self) -> None:
        if self.split not in ("auto", "sentence"):
            raise ValueError(f'split is "auto" or "sentence", not {self.split!r}')
        if self.direction not in ("rewrite_entails_source", "source_entails_rewrite"):
            raise ValueError(
                'direction is "rewrite_entails_source" or "source_entails_rewrite", '
                f"not {self.direction!r}"
            )
        if self.max_tokens is not None and self.max_tokens < 8:
            raise ValueError(f"max_tokens must be at least 8 to hold a pair, not {self.max_tokens}")
        if self.precision not in get_args(Precision):
            raise ValueError(f'precision is "float32" or "bfloat16", not {self.precision!r}')


class FactAnalyzer:
    """Entailment probabilities and factual consistency of text pairs."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AnalyzerSettings | None = None,
        *,
        features: TokenFeatures | None = None,
        folder: str = "this model",
    ) -> None:
        """`features` are the token types that the built-in model reads; others have none."""
        self.settings = settings or AnalyzerSettings()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.features = features
        self.order = label_order(model.config.id2label, folder)
        self.limit = min(self.settings.max_tokens or 10**9, model_limit(model, tokenizer))
        self._special = tokenizer.num_special_tokens_to_add(pair=True)
        self._memo = memo_of(tokenizer)
        self._packed: PackedPairs | None = None
        self._twice: TwoReadings | None = None
        self._told = False

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", **overrides: Any
    ) -> FactAnalyzer:
        """Load a local folder; `overrides` are fields of AnalyzerSettings that replace those kept
        in the folder.

        Raises ModelFolderError for a folder that holds no classifier or no tokenizer,
        UnclearLabelsError for unclear labels.
        """
        path = Path(folder)
        _require_files(path)
        with reading(path):
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        if loading["missing_keys"]:
            raise ModelFolderError(
                f"{path} holds no trained classifier: it lacks "
                f"{', '.join(sorted(loading['missing_keys'])[:3])}. Give a sequence-classification "
                "model trained for NLI, or train one with: visa train nli"
            )
        kept = getattr(model.config, SETTINGS_KEY, None) or {}
        settings = AnalyzerSettings(**{**kept, **overrides})
        features = TokenFeatures.load(path)
        model = model.to(device).float()
        return cls(model, tokenizer, settings, features=features, folder=str(path))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write safetensors, config.json (with the settings) and tokenizer files aside, then rename
        into place.
        """
        path = Path(folder)
        with atomic_folder(path) as scratch:
            self.write(scratch)
        return path

    def write(self, folder: Path) -> None:
        """Write the files of the model into an existing folder."""
        kept = {k: v for k, v in asdict(self.settings).items() if k != "precision"}
        setattr(self.model.config, SETTINGS_KEY, kept)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.features is not None:
            self.features.save(folder)

    def predict(
        self,
        premises: list[str],
        hypotheses: list[str],
        batch_size: int = 64,
        *,
        split: Split | None = None,
    ) -> torch.Tensor:
        """Probabilities [B, 3] of (entailment, neutral, contradiction), float32 on CPU; each row
        sums to 1.

        A cut pair takes, for each hypothesis sentence, the triple of the premise chunk that entails
        it most, and the mean of those over sentences. A blank text states nothing: the pair is
        neutral. Repeated pairs are scored once.
        """
        if len(premises) != len(hypotheses):
            raise ValueError(f"{len(premises)} premises for {len(hypotheses)} hypotheses")
        pairs = list(zip(premises, hypotheses, strict=True))
        told = [row for row, pair in enumerate(pairs) if pair[0].strip() and pair[1].strip()]
        probs = torch.tensor([0.0, 1.0, 0.0]).repeat(len(pairs), 1)
        if not told:
            return probs
        distinct = dedupe_pairs([premises[row] for row in told], [hypotheses[row] for row in told])
        unique = [pairs[told[i]] for i in distinct.first.tolist()]
        plans = self._plan(unique, split or self.settings.split)
        pieces = list(dict.fromkeys(piece for plan in plans for row in plan for piece in row))
        twice = self.two_readings
        if twice is None:
            rows = self._score(pieces, batch_size)
        else:
            rows = list(self.probabilities(twice.logits(pieces, _numbered(plans, pieces))))
        scores = dict(zip(pieces, rows, strict=True))
        combined = torch.stack([_combine(plan, scores) for plan in plans])
        probs[told] = combined[torch.from_numpy(distinct.inverse)]
        return probs

    def consistency(
        self, sources: list[str], rewrites: list[str], batch_size: int = 64
    ) -> Consistency:
        """Both directions of every (source, rewrite), each [B]; the mean is (2 fwd + bwd) / 3, as
        published.
        """
        if len(sources) != len(rewrites):
            raise ValueError(f"{len(sources)} sources for {len(rewrites)} rewrites")
        rows = len(sources)
        entailment = self.predict(rewrites + sources, sources + rewrites, batch_size)[:, 0]
        fwd, bwd = entailment[:rows], entailment[rows:]
        if self.settings.direction == "source_entails_rewrite":
            fwd, bwd = bwd, fwd
        return Consistency(fwd=fwd, bwd=bwd, mean=(2 * fwd + bwd) / 3)

    def encode(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        """Padded model inputs [R, T] of pairs that fit the limit."""
        encoded = self.tokenizer(
            [premise for premise, _ in pairs],
            [hypothesis for _, hypothesis in pairs],
            padding=True,
            return_tensors="pt",
            return_special_tokens_mask=True,
            split_special_tokens=True,
            return_token_type_ids=self.features is not None or None,
            verbose=False,
        )
        special = encoded.pop("special_tokens_mask")
        if self.features is not None:
            segments = encoded["token_type_ids"]
            encoded["token_type_ids"] = self.features(encoded["input_ids"], segments, special)
        return dict(encoded)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over the model's labels, columns reordered to (entailment, neutral,
        contradiction), [R, 3] float32.
        """
        probs = logits.float().softmax(dim=-1)
        columns = [
            probs.new_zeros(len(probs)) if index is None else probs[:, index]
            for index in self.order
        ]
        return torch.stack(columns, dim=1)

    def pair_lengths(self, pairs: list[Pair]) -> list[int]:
        """Tokens of each pair, special ones included."""
        lengths = self._lengths([text for pair in pairs for text in pair])
        return [lengths[a] + lengths[b] + self._special for a, b in pairs]

    def _count(self, text: str) -> int:
        return len(
            self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, verbose=False
            )["input_ids"]
        )

    def _lengths(self, texts: list[str]) -> dict[str, int]:
        unique = list(dict.fromkeys(texts))
        return {
            text: len(row) for text, row in zip(unique, self._memo.ids(unique), strict=True)
        }

    def _plan(self, pairs: list[Pair], split: Split) -> list[list[list[Pair]]]:
        """For every pair: for every hypothesis sentence: the (premise chunk, sentence) pairs to
        score.
        """
        lengths = self._lengths([text for pair in pairs for text in pair])
        plans = []
        for premise, hypothesis in pairs:
            fits = lengths[premise] + lengths[hypothesis] + self._special <= self.limit
            if not fits:
                plans.append(self._cut(premise, hypothesis, lengths[premise]))
            elif split == "sentence":
                plans.append([[(premise, sentence)] for sentence in split_sentences(hypothesis)])
            else:
                plans.append([[(premise, hypothesis)]])
        return plans

    def _cut(self, premise: str, hypothesis: str, premise_tokens: int) -> list[list[Pair]]:
        room = self.limit - self._special
        sentences = hypothesis_sentences(hypothesis, room // 2, self._count)
        longest = max(self._count(sentence) for sentence in sentences)
        left = room - longest
        chunks = [premise] if premise_tokens <= left else premise_chunks(premise, left, self._count)
        return [[(chunk, sentence) for chunk in chunks] for sentence in sentences]

    @property
    def packed(self) -> PackedPairs:
        """Scoring without padding, made at the first use; its `why_not` says where it cannot."""
        if self._packed is None:
            self._packed = PackedPairs(self.model, self.tokenizer, self.features)
        return self._packed

    @property
    def two_readings(self) -> TwoReadings | None:
        """How pairs are read where bfloat16 was asked for and serves; why it does not is logged
        once.
        """
        if self.settings.precision == "float32":
            return None
        why = self.why_not_bfloat16
        if why is None:
            if self._twice is None:
                self._twice = TwoReadings(self.packed, self.order, self.limit)
            return self._twice
        if not self._told:
            self._told = True
            log.warning("pairs are read in float32, not in bfloat16: %s", why)
        return None

    @property
    def why_not_bfloat16(self) -> str | None:
        """Why bfloat16 does not serve here, None if it does."""
        if self.model.training:
            return "the model is in training mode"
        return self.packed.why_not or self.packed.encoder.why_not_bfloat16

    def _score(self, pieces: list[Pair], batch_size: int) -> list[torch.Tensor]:
        """Probability triple of each piece, in the order given."""
        if not self.model.training and self.packed.why_not is None:
            return list(self.probabilities(self.packed.logits(pieces)))
        return self._score_padded(pieces, batch_size)

    @torch.inference_mode()
    def _score_padded(self, pieces: list[Pair], batch_size: int) -> list[torch.Tensor]:
        """The same through padded batches of pieces of similar length."""
        lengths = self._lengths([text for piece in pieces for text in piece])
        order = sorted(
            range(len(pieces)), key=lambda i: lengths[pieces[i][0]] + lengths[pieces[i][1]]
        )
        scores: list[torch.Tensor] = [torch.empty(0)] * len(pieces)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            inputs = self.encode([pieces[i] for i in rows])
            inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
            probs = self.probabilities(self.model(**inputs).logits).cpu()
            for i, row in zip(rows, probs, strict=True):
                scores[i] = row
        return scores


def _numbered(plans: list[list[list[Pair]]], pieces: list[Pair]) -> list[list[list[int]]]:
    """The plans with each piece's number in its place."""
    number = {piece: i for i, piece in enumerate(pieces)}
    return [[[number[piece] for piece in row] for row in plan] for plan in plans]


def _combine(plan: list[list[Pair]], scores: dict[Pair, torch.Tensor]) -> torch.Tensor:
    best = []
    for row in plan:
        triples = torch.stack([scores[piece] for piece in row])
        best.append(triples[triples[:, 0].argmax()])
    return torch.stack(best).mean(dim=0)


def model_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest input in tokens: the smaller of the tokenizer's and the position table's; 512 when
    neither says.
    """
    limits = []
    if tokenizer.model_max_length and tokenizer.model_max_length < 10**6:
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and positions > 0:
        offset = 0
        if model.config.model_type in _OFFSET_POSITIONS:
            offset = (model.config.pad_token_id or 0) + 1
        limits.append(positions - offset)
    return min(limits, default=512)


def _require_files(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelFolderError(
            f"{path} is not a model folder: it holds no config.json. Give a local Hugging Face "
            "folder, or train one with: visa train nli"
        )
    if not any(path.glob("*.safetensors")):
        raise ModelFolderError(
            f"{path} has no *.safetensors weights; pickled weights are not loaded, convert them "
            "with save_pretrained first"
        )
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelFolderError(
            f"{path} holds a model but no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). Copy "
            "the tokenizer files of the model it was trained from into that folder."
        )
