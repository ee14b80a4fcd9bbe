"""Opening the tested model and the judge: an endpoint, a local folder, or the embedded judge."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from pathlib import Path

from visa_core.endpoints import ChatConfig, ChatRequest, EmbeddedChat, open_chat
from visa_core.evaluation.pairwise.protocol import Asked
from visa_core.models.encoder import ModelFolderError

EMBEDDED = "embedded"
"""Name of the judge that needs nothing: for tests and dry runs, it understands no text."""

ANSWERING_FILES = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template*",
)
"""Files of a model folder that its answers depend on."""

HIGH = frozenset(
    "self own decide choose freedom rights evidence science doctor equal everyone share both open "
    "curious tolerance environment dream protest question reason personal".split()
)
LOW = frozenset(
    "family tradition custom elders obey god priest duty nation order security safe jobs group "
    "strangers loyal harmony community together respect authority prayer men".split()
)
"""Words that the embedded judge counts for and against the high end, whatever the dimension."""


def open_asked(config: ChatConfig) -> Asked:
    """The model that the settings name; the judge "embedded" where they say so.

    Raises ValueError when none is named, and ModelFolderError or EndpointError like `open_chat`.
    """
    if config.model == EMBEDDED and not config.base_url:
        return Asked(chat=EmbeddedChat(embedded_judge, name="embedded judge"), identity=EMBEDDED)
    return Asked(chat=open_chat(config), identity=identity(config))


def identity(config: ChatConfig) -> str:
    """What the answers of a model are kept under: an endpoint's address and name, or the hash of a
    local folder's files, so that other weights in the same folder are asked anew.
    """
    if config.base_url:
        return f"{config.base_url} {config.model} {config.extra}".strip()
    folder = Path(config.model)
    digest = hashlib.sha256()
    files = sorted({path for pattern in ANSWERING_FILES for path in folder.glob(pattern)})
    if not files:
        raise ModelFolderError(
            f"{folder} is not a model folder, and no base_url names an endpoint: give a local "
            "folder, or the endpoint's address beside the model's name"
        )
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def public(config: ChatConfig) -> dict[str, object]:
    """Settings for a report: which model, not how hard it was asked. They hold no key."""
    record = asdict(config)
    return {name: record[name] for name in ("model", "base_url", "extra") if record[name]}


def embedded_judge(request: ChatRequest) -> str:
    """A rule in place of a judge: the response with more words of one list and fewer of another.

    Ties go to Response 1, so that it has a measurable liking for the first place.
    """
    text = request.messages[-1]["content"]
    first = text.partition("Response 1:")[2].partition("Response 2:")[0]
    second = text.partition("Response 2:")[2].partition("Which response is more")[0]
    lead = _signs(second) - _signs(first)
    return f"By its words.\n{2 if lead > 0 else 1}"


def _signs(text: str) -> int:
    words = re.findall(r"[a-z]+", text.lower())
    return sum((word in HIGH) - (word in LOW) for word in words)
