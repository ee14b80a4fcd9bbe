"""Other projects' implementations as providers; `make bench-deps` installs them."""

from __future__ import annotations


def attach() -> None:
    """Add the peers to the registered ops."""
