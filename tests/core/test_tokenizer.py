"""The word tokenizer loses nothing, and a known word is one token."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from visa_core.models.tokenizer import SPECIALS, build_tokenizer

TEXTS = ["Amara leads the meeting at 4am; always obey the rules.", "the (big) soup, isn't it?"]
EXTRA = ("<query>", "<rewrite>")
TOKENIZER = build_tokenizer(TEXTS, extra_specials=EXTRA)


def encode(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


any_text = st.text(max_size=60)
near_text = st.lists(
    st.sampled_from(
        [
            "the",
            "soup",
            "Soup",
            ".",
            ",",
            "  ",
            "\n",
            "\t",
            " ",
            "<0x41>",
            "<0x",
            "4am",
            "é",
            "猫",
            "🐈",
        ]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(any_text | near_text)
def test_no_text_is_lost(text: str) -> None:
    """But for what the tokenizer says it does not keep."""
    text = text.replace("\u2581", "").removeprefix(" ")
    if text.startswith(" ") or any(s in text for s in (*SPECIALS.values(), *EXTRA)):
        return
    assert TOKENIZER.decode(encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "Amara leads the meeting at 4am; always obey the rules.",
        "two  blanks   and three",
        "line\nbreak\r\n\ttab\n",
        "trailing blank ",
        "naïve 猫 🐈 \u200b e\u0301",
        "isn't (it) it's",
        "spelled <0x41> out",
        "",
    ],
)
def test_odd_texts_come_back(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


def test_one_leading_blank_is_what_is_lost() -> None:
    assert TOKENIZER.decode(encode(" the")) == "the"
    assert TOKENIZER.decode(encode("  the")) == " the"


def test_a_known_word_is_one_token_wherever_it_stands() -> None:
    words = {re.sub(r"\W+$", "", word) for text in TEXTS for word in text.split()}
    for word in words - {"(big"}:
        assert len(encode(word)) == 1, word
        assert encode(f"the {word}.") == [*encode("the"), *encode(word), encode("the.")[-1]]
    assert len(encode(TEXTS[0])) == len(re.findall(r"\w+|[;.]", TEXTS[0]))


def test_an_unknown_word_is_spelled_in_bytes() -> None:
    pieces = TOKENIZER.convert_ids_to_tokens(encode("zebra"))
    assert pieces[-5:] == [f"<0x{byte:02X}>" for byte in b"zebra"]
    assert TOKENIZER.unk_token_id not in encode("zebra 猫 \x00")


def test_rare_words_are_left_out_first() -> None:
    small = build_tokenizer(["a a a b b c"], max_words=2)
    assert [len(small(word)["input_ids"]) for word in "ab"] == [1, 1]
    assert len(small("c")["input_ids"]) > 1


def test_specials_are_single_tokens_and_a_saved_one_is_the_same(tmp_path: Path) -> None:
    ids = encode("<query> the soup <rewrite>")
    assert ids[0] == TOKENIZER.convert_tokens_to_ids("<query>")
    assert ids[-1] == TOKENIZER.convert_tokens_to_ids("<rewrite>")
    assert TOKENIZER.decode(ids, skip_special_tokens=True).strip() == "the soup"
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token == "</s>" and loaded.pad_token == "<pad>"
    for text in (*TEXTS, "odd  <0x41> 猫\n", "<query> the soup <rewrite>"):
        assert loaded(text)["input_ids"] == encode(text)
        assert loaded.decode(encode(text)) == text


def test_a_blank_before_a_special_token_is_one_token() -> None:
    pieces = TOKENIZER.convert_ids_to_tokens(encode("the soup <rewrite> the soup"))
    assert pieces == ["▁the", "▁soup", "▁", "<rewrite>", "▁the", "▁soup"]
