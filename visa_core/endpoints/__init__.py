"""Chat models behind one protocol: OpenAI-compatible endpoints, local folders, embedded ones."""

from visa_core.endpoints.account import Account
from visa_core.endpoints.chat import (
    ChatModel,
    ChatReply,
    ChatRequest,
    EmbeddedChat,
    complete,
    message,
)
from visa_core.endpoints.config import ChatConfig
from visa_core.endpoints.errors import EndpointError
from visa_core.endpoints.open import open_chat
from visa_core.endpoints.structured import Answer, Refused, answers

__all__ = [
    "Account",
    "Answer",
    "ChatConfig",
    "ChatModel",
    "ChatReply",
    "ChatRequest",
    "EmbeddedChat",
    "EndpointError",
    "Refused",
    "answers",
    "complete",
    "message",
    "open_chat",
]
