"""An annotator over any chat model: both responses side by side, the explanation as ground truth.

The responses are called A and B by the comparison's hash rather than by preference, so that no
model can favour a place. The prompt is a plain file to edit (prompts/compare.txt, or your own).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from visa_core.data.annotate.annotator import Annotation, Invalid, Keyed, RawAnswer, Record
from visa_core.data.construction.comparison import Comparison
from visa_core.endpoints import ChatModel, ChatReply, ChatRequest, answers, message
from visa_core.models.prompt import fill_slots
from visa_core.value_space import ValueSpace
from visa_core.values import LIKERT, SCHWARTZ

TEMPLATE = Path(__file__).parent / "prompts" / "compare.txt"
SLOTS = ("{prompt}", "{first}", "{second}", "{preferred}", "{explanation}")
NO_EXPLANATION = "(none was given)"


class ChatAnnotator:
    """Asks a chat model for both vectors as JSON, and again while what it says is invalid."""

    paid = True

    def __init__(
        self,
        chat: ChatModel,
        space: ValueSpace = SCHWARTZ,
        *,
        template: Path | None = None,
        reasks: int = 2,
        max_tokens: int = 800,
        temperature: float = 0.0,
    ) -> None:
        self.chat = chat
        self.space = space
        self.system, self.user = read_template(template or TEMPLATE)
        self.reasks = reasks
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.schema = answer_schema(space)
        settings = [self.system, self.user, space.to_dict(), reasks, max_tokens, temperature]
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=6).hexdigest()
        self.name = f"chat-1-{chat.name}-{digest}"

    def annotate(self, items: Iterable[Keyed], record: Record) -> None:
        """See Annotator.annotate; as answers come in."""

        def requests() -> Iterator[ChatRequest]:
            for key, comparison in items:
                yield self.request(key, comparison)

        def log(request: ChatRequest, reply: ChatReply, invalid: str) -> None:
            key = bytes.fromhex(request.tag)
            raw = RawAnswer(
                text=reply.text,
                error=reply.error,
                invalid=invalid if reply.ok else "",
                attempt=reply.attempt,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
            )
            record(key, self._settled(request, reply, invalid), raw)

        for _ in answers(self.chat, requests(), self.check, reasks=self.reasks, log=log):
            pass

    def _settled(
        self, request: ChatRequest, reply: ChatReply, invalid: str
    ) -> Annotation | Invalid | None:
        """The outcome that a reply settles, so that it is kept in the same moment; None when the
        model is asked again.
        """
        if not reply.ok:
            return Invalid(reason=reply.error, failed=True)
        if invalid:
            if request.attempt < self.reasks:
                return None
            return Invalid(reason=f"invalid after {request.attempt + 1} answers: {invalid}")
        first, second = self.check(read_json(reply))
        key = bytes.fromhex(request.tag)
        chosen, rejected = (second, first) if swapped(key) else (first, second)
        return Annotation(chosen=chosen, rejected=rejected)

    def request(self, key: bytes, comparison: Comparison) -> ChatRequest:
        """The conversation that asks for one comparison."""
        responses = comparison.chosen, comparison.rejected
        first, second = reversed(responses) if swapped(key) else responses
        slots = {
            "prompt": comparison.prompt,
            "first": first,
            "second": second,
            "preferred": "B" if swapped(key) else "A",
            "explanation": comparison.explanation or NO_EXPLANATION,
            "names": ", ".join(self.space.names),
            "values": "\n".join(_described(d) for d in self.space.dimensions),
        }
        messages = [message("system", fill_slots(self.system, slots))] if self.system else []
        messages.append(message("user", fill_slots(self.user, slots)))
        return ChatRequest(
            messages=tuple(messages),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            schema=self.schema,
            tag=key.hex(),
        )

    def check(self, found: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Levels of A and B of an answer that follows the schema."""
        first, second = (
            tuple(round(2 * found[side][name]) for name in self.space.names) for side in "AB"
        )
        return first, second


def answer_schema(space: ValueSpace) -> dict[str, Any]:
    """JSON schema of an answer: every value's level for both responses, on the five-point scale."""
    levels = {
        "type": "object",
        "properties": {name: {"type": "number", "enum": list(LIKERT)} for name in space.names},
        "required": list(space.names),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"reasoning": {"type": "string"}, "A": levels, "B": levels},
        "required": ["reasoning", "A", "B"],
        "additionalProperties": False,
    }


def swapped(key: bytes) -> bool:
    """Whether the chosen response stands in place B."""
    return bool(key[0] & 1)


def read_json(reply: ChatReply) -> dict[str, Any]:
    """The JSON object of a valid reply."""
    from visa_core.endpoints.structured import read

    return read(reply, "json")


def read_template(path: Path) -> tuple[str, str]:
    """System and user part of a prompt file. Raises ValueError that names the file and the slot
    that it lacks.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"prompt file {path}: {error.strerror or error}") from None
    head, mark, user = text.partition("[user]\n")
    if not mark:
        raise ValueError(f"{path}: a prompt file needs a line [user] with the user's part after it")
    missing = [slot for slot in SLOTS if slot not in user]
    if missing:
        raise ValueError(f"{path}: the [user] part lacks {', '.join(missing)}")
    return head.removeprefix("[system]\n").strip(), user.strip()


def _described(dimension: Any) -> str:
    words = f" ({', '.join(dimension.keywords)})" if dimension.keywords else ""
    return f"- {dimension.name}: {dimension.definition}{words}"
