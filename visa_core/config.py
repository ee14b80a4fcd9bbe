"""Typed settings. Defaults are the paper's hyperparameters where it names them; the embedded recipe overrides them in one place."""

from __future__ import annotations

from dataclasses import dataclass
