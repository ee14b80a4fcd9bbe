"""The embedded corpus: texts whose facts and values are known by construction, so that the whole
job runs without any file.
"""

from visa_core.data.embedded.choices import choices
from visa_core.data.embedded.corpus import ReferenceNoise, glossary, paraphrases, rewrites
from visa_core.data.embedded.pairs import dialogues, nli_pairs, preferences

__all__ = [
    "ReferenceNoise",
    "choices",
    "dialogues",
    "glossary",
    "nli_pairs",
    "paraphrases",
    "preferences",
    "rewrites",
]
