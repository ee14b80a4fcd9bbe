"""Other projects' implementations as providers; `make bench-deps` installs them."""

from __future__ import annotations

from bench.ops import LENIENT

_attached = False


def attach() -> None:
    """Add the peers to the registered ops, once."""
    global _attached
    if _attached:
        return
    _attached = True
    try:
        from bench.peers import providers
    except ImportError as error:
        if not LENIENT:
            raise
        print(f"peers left out: {error}")
        return
    providers.attach()
