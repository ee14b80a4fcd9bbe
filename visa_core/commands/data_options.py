"""Options of `visa data`, besides the build's own. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Upload a built data set to a hub; needs credentials (HF_TOKEN, or hf auth login)."""

    folder: Path
    """Folder that `visa data build` wrote."""
    repo: str
    """Repository as OWNER/NAME; made where it is missing."""
    public: bool = False
    """Make a new repository public. It holds texts of the data it was built from: read their
    licence before."""


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Count a built data set anew from its JSON lines, which you may have filtered or edited:
    statistics, pictures, card, and the Parquet files."""

    folder: Path
    """Folder that `visa data build` wrote."""
    space: Path | None = None
    """JSON file of the value space, where it is not Schwartz's."""
    json: bool = False
    """Print the statistics as JSON instead of the card."""
