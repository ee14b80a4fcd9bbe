"""A chat model as a rewriter: it has the parts of `Rewriter` that a pipeline uses.

Styles: simple (a plain request), rules (goals, scale, do and do not), think (rules, and reasoning
inside <think> tags, which is taken off). Each is a file in `prompts/`; a path of another one works
as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from visa_core.data.schema import check_text
from visa_core.endpoints import Answer, ChatModel, ChatRequest, EndpointError, answers, message
from visa_core.models.prompt import PromptTemplate, fill_slots, target_text
from visa_core.values import SCHWARTZ, ValueSpace

PROMPTS = Path(__file__).parent / "prompts"
STYLES = ("simple", "rules", "think")


class PartlyAnswered(EndpointError):
    """Some requests got no reply; what came for the others is kept here.

    texts: a text or None for each request. whole [B] bool.
    """

    def __init__(self, reason: str, texts: list[str | None], whole: torch.Tensor) -> None:
        super().__init__(reason)
        self.texts = texts
        self.whole = whole


class PromptedRewriter:
    """Rewrites by asking a chat model, no weight changed.

    max_tokens: longest reply, reasoning included. A reply without a rewrite (empty, or ending
    inside <think>) is asked for again up to `reasks` times and then counts as an empty rewrite.
    """

    def __init__(
        self,
        chat: ChatModel,
        style: str | Path,
        space: ValueSpace = SCHWARTZ,
        *,
        max_tokens: int = 2048,
        reasks: int = 2,
    ) -> None:
        self.chat = chat
        self.style = str(style)
        self.template = load_style(style)
        self.space = space
        self.max_tokens = max_tokens
        self.reasks = reasks

    def prompt(self, query: str, response: str, target: torch.Tensor) -> tuple[str, str]:
        """System and user text for target [K]; refuses an empty response."""
        check_text("response", response)
        slots = {
            "query": query,
            "response": response,
            "target": target_text(self.space, target),
            "names": ", ".join(self.space.names),
        }
        return fill_slots(self.template.system, slots), fill_slots(self.template.user, slots)

    def sample(
        self,
        queries: Sequence[str],
        responses: Sequence[str],
        targets: torch.Tensor,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> tuple[list[str], torch.Tensor]:
        """Rewrites of B responses towards targets [B, K], and which are whole, [B] bool.

        Raises PartlyAnswered when the model gives no reply at all to some request. `batch_size` is
        of no use here: the chat model has its own.
        """
        if top_p != 1.0:
            raise ValueError("prompted rewriting takes no top_p; put it into the chat's extra")
        rows = zip(queries, responses, targets, strict=True)
        requests = [self._request(*row, temperature, seed) for row in rows]
        texts: list[str | None] = [None] * len(requests)
        reason = ""
        whole = torch.zeros(len(requests), dtype=torch.bool)
        for i, outcome in answers(self.chat, requests, str.strip, parse="text", reasks=self.reasks):
            if isinstance(outcome, Answer):
                texts[i] = outcome.value
                whole[i] = outcome.reply.finish != "length"
            elif outcome.failed:
                reason = outcome.reason
            else:
                texts[i] = ""
        if reason:
            missing = sum(text is None for text in texts)
            raise PartlyAnswered(
                f"{self.chat.name} gave no reply to {missing} of {len(texts)} requests: {reason}",
                texts,
                whole,
            )
        return [text or "" for text in texts], whole

    def rewrite(
        self, queries: Sequence[str], responses: Sequence[str], targets: torch.Tensor, **options
    ) -> list[str]:
        """The texts of `sample`."""
        return self.sample(queries, responses, targets, **options)[0]

    def _request(
        self, query: str, response: str, target: torch.Tensor, temperature: float, seed: int
    ) -> ChatRequest:
        system, user = self.prompt(query, response, target)
        messages = [message("system", system)] if system else []
        return ChatRequest(
            messages=(*messages, message("user", user)),
            temperature=temperature,
            max_tokens=self.max_tokens,
            seed=seed,
        )


def load_style(style: str | Path) -> PromptTemplate:
    """The prompt of a built-in style or of a file. Raises FileNotFoundError or ValueError."""
    path = PROMPTS / f"{style}.txt" if str(style) in STYLES else Path(style)
    if not path.is_file():
        raise FileNotFoundError(
            f"prompting style {style}: no such file; give a path or one of {', '.join(STYLES)}"
        )
    return PromptTemplate.parse(path.read_text(encoding="utf-8"), str(path))
