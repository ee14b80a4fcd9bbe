"""The chat model that a configuration names."""

from __future__ import annotations

from visa_core.endpoints.chat import ChatModel
from visa_core.endpoints.config import ChatConfig


def open_chat(config: ChatConfig) -> ChatModel:
    """An endpoint's model where there is an address, else the local folder's.

    Raises ValueError when no model is named, and EndpointError or ModelFolderError when it cannot
    be used.
    """
    if not config.model:
        raise ValueError("model: give the name of an endpoint's model, or a local model folder")
    if config.base_url:
        from visa_core.endpoints.client import EndpointChat

        return EndpointChat(config)
    from visa_core.endpoints.local import LocalChat

    return LocalChat.from_pretrained(config.model, config)
