"""What NLI training starts from: the built-in classifier, an encoder folder, or a trained NLI
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from visa_core.config import NLIConfig
from visa_core.models.encoder import check_model_folder, minilm_folder
from visa_core.models.exact_match import TokenFeatures, new_classifier
from visa_core.models.fact_analyzer import AnalyzerSettings, FactAnalyzer
from visa_core.models.nli_labels import NLI_LABELS, UnclearLabelsError, label_order
from visa_core.models.tokenizer import build_tokenizer


def base_analyzer(
    config: NLIConfig, settings: AnalyzerSettings, texts: Sequence[str]
) -> FactAnalyzer:
    """An analyzer ready to train; `texts` give the built-in one its vocabulary."""
    if config.backbone == "builtin":
        tokenizer = pair_tokenizer(texts, config.max_length)
        model = new_classifier(
            tokenizer,
            hidden=config.hidden_size,
            layers=config.layers,
            max_tokens=config.max_length,
        )
        features = TokenFeatures.fit(tokenizer, texts)
        return FactAnalyzer(model, tokenizer, settings, features=features)
    folder = minilm_folder() if config.backbone == "minilm" else Path(config.backbone)
    return _from_folder(folder, settings)


def pair_tokenizer(texts: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A lossless word tokenizer that joins pairs as <cls> premise <sep> hypothesis <sep>."""
    tokenizer = build_tokenizer(texts, max_length=max_length)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B:1 <sep>:1",
        special_tokens=[("<cls>", tokenizer.cls_token_id), ("<sep>", tokenizer.sep_token_id)],
    )
    return tokenizer


def _from_folder(folder: Path, settings: AnalyzerSettings) -> FactAnalyzer:
    check_model_folder(folder)
    labels = AutoConfig.from_pretrained(folder, local_files_only=True).id2label
    try:
        label_order(labels, str(folder))
    except UnclearLabelsError:
        # An encoder, or a classifier of something else: its head is replaced by a new one.
        labels = dict(enumerate(NLI_LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return FactAnalyzer(model.float(), tokenizer, settings, folder=str(folder))
