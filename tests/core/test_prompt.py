"""Prompt templates: placeholders, files, chat templates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests import tiny
from visa_core.models.prompt import PromptTemplate, builtin_names, target_text
from visa_core.models.tokenizer import build_tokenizer
from visa_core.values import SCHWARTZ

TOKENIZER = build_tokenizer(["a word"])
TARGET = SCHWARTZ.vector({"power": -0.5, "security": 1.0})


def filled(template: PromptTemplate, query: str, response: str) -> str:
    ids = template.encode(TOKENIZER, SCHWARTZ, query, response, TARGET)
    return TOKENIZER.decode(ids)


def test_all_placeholders_are_filled_wherever_they_stand() -> None:
    text = "[user]\n{target}|{response}|{query}|{response}\n{names}!"
    said = filled(PromptTemplate.parse(text, "t"), "Q", "R")
    assert said == f"power -0.5 security +1|R|Q|R\n{', '.join(SCHWARTZ.names)}!"


@pytest.mark.parametrize("odd", ["{response}", "{target} {x}", "{", "}{query}", "{{names}}", "{0}"])
def test_braces_inside_texts_stay(odd: str) -> None:
    template = PromptTemplate.parse("[user]\nq {query} r {response} t {target} {other}", "t")
    said = filled(template, odd, f"say {odd}")
    assert said == f"q {odd} r say {odd} t power -0.5 security +1 {{other}}"


@pytest.mark.parametrize("slot", ["{query}", "{response}", "{target}"])
def test_a_missing_placeholder_names_the_file(tmp_path: Path, slot: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(
        f"[system]\n{slot}\n[user]\n" + "{query} {response} {target}".replace(slot, "it")
    )
    with pytest.raises(ValueError) as error:
        PromptTemplate.load(path)
    assert str(error.value) == f"{path}: the [user] part lacks {slot}"


def test_a_template_without_user_part_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{query} {response} {target}")
    with pytest.raises(ValueError, match=r"mine\.txt: a prompt template needs a line \[user\]"):
        PromptTemplate.load(path)
    with pytest.raises(FileNotFoundError, match=r"no such file; .* compact, rewrite"):
        PromptTemplate.load(tmp_path / "absent.txt")


@pytest.mark.parametrize("name", ["compact", "rewrite"])
def test_builtin_templates_are_files_that_come_back(name: str) -> None:
    assert name in builtin_names()
    template = PromptTemplate.load(name)
    assert PromptTemplate.parse(template.text(), "again") == template


def test_the_default_prompt_states_task_and_scale() -> None:
    said = filled(PromptTemplate.load("rewrite"), "my query", "my response")
    for part in ("my query", "my response", "power -0.5 security +1", *SCHWARTZ.names):
        assert part in said
    for rule in ("Values:", "Facts:", "-1", "+1", "Do\n", "Do not\n"):
        assert rule in PromptTemplate.load("rewrite").system


def test_the_chat_template_is_used_where_there_is_one() -> None:
    plain = build_tokenizer(["a word"], extra_specials=("<|im_start|>", "<|im_end|>"))
    template = PromptTemplate(system="be kind", user="{query} {response} {target}")
    without = template.encode(plain, SCHWARTZ, "q", "r", TARGET)
    assert plain.decode(without) == "be kind\n\nq r power -0.5 security +1"
    chat = build_tokenizer(["a word"], extra_specials=("<|im_start|>", "<|im_end|>"))
    chat.chat_template = tiny.CHAT
    assert roles(chat, template) == ["system", "user", "assistant"]
    bare = PromptTemplate(system="", user=template.user)
    assert roles(chat, bare) == ["user", "assistant"]
    said = chat.decode(template.encode(chat, SCHWARTZ, "q", "r", TARGET))
    assert "be kind" in said and "q r power -0.5 security +1" in said


def roles(tokenizer: PreTrainedTokenizerFast, template: PromptTemplate) -> list[str]:
    """Who speaks in the filled prompt; the last one has yet to."""
    ids = template.encode(tokenizer, SCHWARTZ, "q", "r", TARGET)
    assert all(isinstance(token, int) for token in ids)
    turns = tokenizer.decode(ids).split("<|im_start|>")[1:]
    assert "<|im_end|>" not in turns[-1]
    return [turn.split("\n")[0].strip() for turn in turns]


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ({}, "neutral"),
        ({"security": 1.0, "power": -0.5}, "power -0.5 security +1"),
        ({"hedonism": 0.24, "tradition": -0.2}, "neutral"),
        ({"hedonism": 0.3, "tradition": -0.8}, "hedonism +0.5 tradition -1"),
    ],
)
def test_targets_are_read_on_the_grid(levels: dict[str, float], text: str) -> None:
    assert target_text(SCHWARTZ, SCHWARTZ.vector(levels)) == text


def test_targets_outside_the_scale_are_cut() -> None:
    assert target_text(SCHWARTZ, torch.full((10,), 3.0)).count("+1") == 10
