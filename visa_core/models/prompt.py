"""Prompt templates of the rewriter: plain files that anyone can edit.

A file has a section [user] and may have a section [system] before it. Placeholders: {query},
{response}, {target}, {names}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from visa_core.values import ValueSpace

FOLDER = Path(__file__).parent / "prompts"
NEEDED = ("{query}", "{response}", "{target}")
COMPACT_SPECIALS = ("<query>", "<source>", "<target>", "<rewrite>")


@dataclass(frozen=True)
class PromptTemplate:
    """System and user text with placeholders."""

    system: str
    user: str

    @classmethod
    def load(cls, source: str | Path) -> PromptTemplate:
        """Read a template: a file's path, or the name of a built-in one ("rewrite", "compact")."""
        path = FOLDER / f"{source}.txt" if str(source) in builtin_names() else Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"prompt template {source}: no such file; give a path or one of "
                f"{', '.join(builtin_names())}"
            )
        return cls.parse(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def parse(cls, text: str, name: str) -> PromptTemplate:
        """Template from its text; `name` appears in errors."""
        head, mark, user = text.partition("[user]\n")
        if not mark:
            raise ValueError(
                f"{name}: a prompt template needs a line [user] with the user's part after it"
            )
        missing = [slot for slot in NEEDED if slot not in user]
        if missing:
            raise ValueError(f"{name}: the [user] part lacks {', '.join(missing)}")
        return cls(system=head.removeprefix("[system]\n").strip(), user=user.rstrip("\n"))

    def text(self) -> str:
        """The template as it stands in a file."""
        return (f"[system]\n{self.system}\n" if self.system else "") + f"[user]\n{self.user}\n"

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        space: ValueSpace,
        query: str,
        response: str,
        target: torch.Tensor,
    ) -> list[int]:
        """Token ids of the filled prompt; through the tokenizer's chat template when it has one.
        target [K].
        """
        slots = {"query": query, "response": response, "target": target_text(space, target)}
        slots["names"] = ", ".join(space.names)
        system, user = (fill_slots(part, slots) for part in (self.system, self.user))
        if tokenizer.chat_template:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": user})
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, enable_thinking=False, return_dict=False
            )
            return list(ids)
        return tokenizer(f"{system}\n\n{user}" if system else user)["input_ids"]


def builtin_names() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def target_text(space: ValueSpace, target: torch.Tensor) -> str:
    """A target as the rewriter reads it: values off zero on the grid of half steps, "security +1
    power -0.5"; else "neutral".
    """
    levels = (target.clamp(-1, 1) * 2).round() / 2
    words = [
        f"{name} {level:+g}"
        for name, level in zip(space.names, levels.tolist(), strict=True)
        if level
    ]
    return " ".join(words) or "neutral"


def fill_slots(template: str, slots: dict[str, str]) -> str:
    """Replace placeholders in one pass, so that braces inside a query or response stay as they
    are.
    """
    parts = []
    rest = template
    while rest:
        places = [(rest.find("{" + name + "}"), name) for name in slots]
        places = [place for place in places if place[0] >= 0]
        if not places:
            break
        at, name = min(places)
        parts += [rest[:at], slots[name]]
        rest = rest[at + len(name) + 2 :]
    return "".join(parts) + rest
