"""What stops a whole run over a chat model; a single request's failure is a reply with an error."""

from __future__ import annotations


class EndpointError(ValueError):
    """The endpoint cannot be used at all: wrong key, unknown model, nobody there, budget spent."""
