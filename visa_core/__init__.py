"""VISA core: rewrite an LLM's answers to a wanted profile of human values, keeping their facts.

    from visa_core import Pipeline

    pipeline = Pipeline.from_pretrained(folder)
    pipeline.rewrite(query, response, instruction="make this more conservation-minded")

The names below load their module, and with it torch and transformers, when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Pipeline": "visa_core.pipeline",
    "SCHWARTZ": "visa_core.values",
    "VALUEEVAL20": "visa_core.values",
    "ValueSpace": "visa_core.values",
}

__all__ = ["Pipeline", "SCHWARTZ", "VALUEEVAL20", "ValueSpace", "__version__"]  # noqa: F822


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'visa_core' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
