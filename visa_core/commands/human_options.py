"""Options of `visa human`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Make a sheet for human raters: comparison of value profiles, identification of values."""

    out: Path
    """Folder for sheet.json, which raters see, and key.json, which they must not see."""
    comparison: tuple[str, ...] = ()
    """Two systems as NAME=FILE, JSON lines with query, response and values (or a text
    "analysis"), as `visa detect` writes them: whose reading of the response is better?"""
    identification: tuple[str, ...] = ()
    """One or more systems as NAME=FILE, JSON lines with query, response, target and rewrite, as
    `visa rewrite` writes them: which values stand out in the rewrite?"""
    n: int | None = None
    """At most N sources of each task, drawn at random; all without it."""
    space: Path | None = None
    """JSON file of another value space."""
    seed: int = 0
    """Seed of the drawing, the order and the sides."""

    def __post_init__(self) -> None:
        if not self.comparison and not self.identification:
            raise ValueError("give --comparison, --identification, or both")
        if self.n is not None and self.n < 1:
            raise ValueError(f"--n must be at least 1, got {self.n}")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Open a page on this machine where raters fill in a sheet; Ctrl-C ends it."""

    sheet: Path
    """Folder that `visa human export` wrote."""
    port: int = 8765
    """Port on 127.0.0.1; 0 takes a free one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be in [0, 65535], got {self.port}")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score the answers to a sheet: win rates with intervals, agreement, sign matches."""

    sheet: Path
    """Folder that `visa human export` wrote, with the answers."""
    out: Path | None = None
    """Folder for human.json and human.md; by default the sheet's."""
    json: bool = False
    """Print JSON."""
