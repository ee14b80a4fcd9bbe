"""Which chat model answers, and how hard it may be asked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """A chat model: an endpoint's when `base_url` is given, else a local Hugging Face folder."""

    model: str = ""
    """The model's name at the endpoint, or the folder of a local one."""
    base_url: str = ""
    """Address of an OpenAI-compatible endpoint, such as https://api.openai.com/v1 or
    http://localhost:8000/v1 (vLLM and most servers); empty for a local folder."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never an option and never logged.
    An address on this machine may go without."""
    concurrency: int = 16
    """Requests in flight at once."""
    requests_per_minute: float = 0.0
    """Most requests started in a minute; 0 sets no limit."""
    tokens_per_minute: float = 0.0
    """Most tokens in a minute, as the endpoint counts them; 0 sets no limit."""
    timeout: float = 120.0
    """Seconds until a request without a whole reply is cut and repeated."""
    retries: int = 6
    """Repetitions of a request after 408, 409, 425, 429, 5xx, a cut connection, a timeout, or a
    body that is no chat completion."""
    backoff: float = 1.0
    """Seconds before the first repetition; doubled each time, with jitter. An endpoint's
    Retry-After goes before it."""
    backoff_most: float = 60.0
    """Longest wait in seconds, also for a Retry-After."""
    give_up_after: int = 20
    """Requests in a row that fail for good until the run stops: the endpoint is taken for dead."""
    structured: Literal["schema", "object", "none"] = "schema"
    """How JSON is asked for: by response_format json_schema, json_object, or in words alone."""
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the endpoint calls the limit of a reply's length; OpenAI's newer models take the
    second."""
    extra: str = ""
    """JSON object merged into every request, such as '{"top_p": 0.9}'."""
    input_price: float = 0.0
    """Price of a million prompt tokens, for the account."""
    output_price: float = 0.0
    """Price of a million tokens of replies."""
    cost_limit: float = 0.0
    """The run stops once the account passes this; 0 sets no limit and needs no prices."""
    batch_size: int = 16
    """Conversations that a local model continues at once."""
    device: str = "auto"
    """Of a local model: auto (a GPU where there is one), cpu or cuda."""
    engine: Literal["hf", "vllm"] = "hf"
    """Of a local model: hf, or vLLM inside this process (extra "vllm")."""
    max_length: int | None = None
    """Longest conversation of a local model in tokens, reply included; by default what the model
    was made for, which vLLM must then find memory for."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "give_up_after", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")
        if self.retries < 0:
            raise ValueError(f"retries must be at least 0, got {self.retries}")
        for name in ("timeout", "backoff", "backoff_most"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        limits = ("requests_per_minute", "tokens_per_minute", "input_price", "output_price")
        for name in (*limits, "cost_limit"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.cost_limit and not (self.input_price or self.output_price):
            raise ValueError("cost_limit needs input_price and output_price to count with")
        if self.base_url:
            check_url(self.base_url)
        self.extra_fields()

    def extra_fields(self) -> dict[str, Any]:
        """The object of `extra`. Raises ValueError when it is none."""
        if not self.extra:
            return {}
        try:
            fields = json.loads(self.extra)
        except json.JSONDecodeError as error:
            raise ValueError(f"extra is not valid JSON: {error.msg}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"extra must be a JSON object, got {type(fields).__name__}")
        return fields


def check_url(url: str) -> None:
    """Raises ValueError unless it is a plain http(s) address without a password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must start with http:// or https://, got {url!r}")
    if parts.username or parts.password:
        raise ValueError(
            "base_url must not hold a user name or password; put the key into the environment "
            "variable that api_key_env names"
        )


def is_local(url: str) -> bool:
    """Whether the address is on this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
