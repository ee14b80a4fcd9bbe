"""The annotator that a configuration names."""

from __future__ import annotations

from visa_core.data.annotate.annotator import Annotator
from visa_core.data.construction.config import AnnotatorConfig
from visa_core.value_space import ValueSpace


def make_annotator(config: AnnotatorConfig, space: ValueSpace) -> Annotator:
    """Raises ValueError for settings, prompt files or models that cannot be used."""
    if config.kind == "lexicon":
        from visa_core.data.annotate.lexicon import LexiconAnnotator

        return LexiconAnnotator(space)
    from visa_core.data.annotate.chat import ChatAnnotator
    from visa_core.endpoints import open_chat

    return ChatAnnotator(
        open_chat(config.chat),
        space,
        template=config.prompt,
        reasks=config.reasks,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
    )
