"""Readers of preferences: Community Alignment in all its forms and oddities, HH, JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.preferences import Turn, ca_row, read, write_csv, write_dataset, write_parquet
from tests.tiny import write_lines
from visa_core.data.construction.comparison import conversation
from visa_core.data.schema import DataError

FORMS: dict[str, Callable[[Path, list[dict[str, str]]], Path]] = {
    "csv": lambda folder, rows: write_csv(folder / "t.csv", rows),
    "parquet": lambda folder, rows: write_parquet(folder / "t.parquet", rows),
    "dataset": lambda folder, rows: write_dataset(folder / "d", rows),
    "splits": lambda folder, rows: write_dataset(folder / "d", rows, split="train"),
}
EAT: Turn = ("What to eat?", ["Soup.", "Fish.", "Rice.", "Figs."], "b", "Fish is healthier")
DRINK: Turn = ("And to drink?", ["Tea.", "Milk.", "", ""], "a", "")
SLEEP: Turn = ("When to sleep?", ["At ten.", "At two.", "Never.", "Now."], "c", "bold")


def summary(rows: list) -> list[tuple[str, str, str, str, str]]:
    return [(c.id, c.prompt, c.chosen, c.rejected, c.explanation) for c in rows]


@pytest.mark.parametrize("form", FORMS)
def test_all_turns_with_their_histories(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path, [ca_row("7", EAT, DRINK, SLEEP)])
    found, intake = read(f"ca:{path}")
    second = "Human: What to eat?\n\nAssistant: Fish.\n\nHuman: And to drink?"
    third = (
        "Human: What to eat?\n\nAssistant: Fish.\n\nHuman: And to drink?\n\nAssistant: Tea.\n\n"
        "Human: When to sleep?"
    )
    assert summary(found) == [
        ("ca-7-1ba", "What to eat?", "Fish.", "Soup.", "Fish is healthier"),
        ("ca-7-1bc", "What to eat?", "Fish.", "Rice.", "Fish is healthier"),
        ("ca-7-1bd", "What to eat?", "Fish.", "Figs.", "Fish is healthier"),
        ("ca-7-2ab", second, "Tea.", "Milk.", ""),
        ("ca-7-3ca", third, "Never.", "At ten.", "bold"),
        ("ca-7-3cb", third, "Never.", "At two.", "bold"),
        ("ca-7-3cd", third, "Never.", "Now.", "bold"),
    ]
    assert {c.root for c in found} == {"What to eat?"} and {c.language for c in found} == {"en"}
    assert intake.counts == Counter({"rows": 1, "comparisons read": 7})


def test_turns_after_a_gap_are_cut_and_counted(tmp_path: Path) -> None:
    rows = [
        ca_row("1", EAT, None, SLEEP),
        ca_row("2", EAT, ("And to drink?", ["Tea.", "Milk."], "", ""), SLEEP),
        ca_row("3", EAT, ("And to drink?", ["Tea.", "Milk."], "d", ""), SLEEP, SLEEP),
        ca_row("4", EAT, DRINK),
    ]
    rows[3]["second_turn_preferred_response"] = "the first"
    found, intake = read(f"ca:{write_csv(tmp_path / 't.csv', rows)}")
    assert len(found) == 12 and {c.prompt for c in found} == {"What to eat?"}
    assert intake.counts["turns after a gap"] == 1 + 1 + 2
    assert intake.counts["turns that cannot be used"] == 3
    reasons = [rejected.reason for rejected in intake.shown]
    assert reasons == [
        "field 'second_turn_preferred_response' is empty",
        "field 'second_turn_preferred_response' names response_d, which is empty",
        "field 'second_turn_preferred_response' is 'the first', which is none of response_a, "
        "response_b, response_c, response_d",
    ]
    assert [rejected.line for rejected in intake.shown] == [3, 4, 5]


def test_duplicate_candidates_and_stray_end_tokens(tmp_path: Path) -> None:
    turn: Turn = (
        "What to eat?<|end_of_text|>",
        ["Soup.<|end_of_text|>", "Soup. ", "Fish.", " Fish.<|end_of_text|>"],
        "a",
        "good<|end_of_text|>",
    )
    found, intake = read(f"ca:{write_csv(tmp_path / 't.csv', [ca_row('1', turn)])}")
    assert summary(found) == [("ca-1-1ac", "What to eat?", "Soup.", "Fish.", "good")]
    assert intake.counts["candidates equal to the chosen one"] == 1
    assert intake.counts["candidates that repeat another"] == 1
    alone: Turn = ("What?", ["Soup.", "Soup."], "a", "")
    found, intake = read(f"ca:{write_csv(tmp_path / 'u.csv', [ca_row('1', alone, DRINK)])}")
    assert [c.id for c in found] == ["ca-1-2ab"]
    assert intake.counts["turns without a second candidate"] == 1


def test_languages_are_filtered(tmp_path: Path) -> None:
    rows = [ca_row(str(i), EAT, language=x) for i, x in enumerate(("en", "fr", "HI", "pt", ""))]
    path = write_csv(tmp_path / "t.csv", rows)
    found, intake = read(f"ca:{path}", languages=("EN", "hi"))
    assert [c.language for c in found] == ["en"] * 3 + ["hi"] * 3
    assert intake.counts["rows of other languages"] == 3
    assert len(read(f"ca:{path}")[0]) == 15


def test_several_annotators_stay_apart(tmp_path: Path) -> None:
    prompt, responses, _, _ = EAT
    rows = [
        ca_row("1", (prompt, responses, "a", "warm"), annotator_id="9"),
        ca_row("2", (prompt, responses, "a", "cheap"), annotator_id="10"),
        ca_row("3", (prompt, responses, "d", ""), annotator_id="11"),
    ]
    found, _ = read(f"ca:{write_csv(tmp_path / 't.csv', rows)}")
    assert [(c.chosen, c.explanation) for c in found[::3]] == [
        ("Soup.", "warm"),
        ("Soup.", "cheap"),
        ("Figs.", ""),
    ]
    assert len(found) == 9 and {c.root for c in found} == {"What to eat?"}


def test_bad_rows_are_set_aside_with_their_lines(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [ca_row("1", EAT), ca_row("", EAT), ca_row("3")])
    multi = ("Line\none?", ["a\nb", "c"], "a", "")
    with path.open("ab") as file:
        file.write(b"4,en,too,few\n")
        file.write(b'5,en,,,"caf\xe9?",x,y,,,response_a' + b"," * 31 + b"\n")
    rows = path.read_bytes()
    path = write_csv(tmp_path / "u.csv", [ca_row("6", multi), ca_row("7", DRINK)])
    path.write_bytes(rows + path.read_bytes().split(b"\n", 1)[1])
    found, intake = read(f"ca:{path}")
    assert [c.id for c in found] == ["ca-1-1ba", "ca-1-1bc", "ca-1-1bd", "ca-6-1ab", "ca-7-1ab"]
    assert found[3].prompt == "Line\none?" and [found[3].line, found[4].line] == [7, 10]
    assert [(r.line, r.reason[:44]) for r in intake.shown] == [
        (3, "field 'conversation_id' is empty"),
        (4, "field 'first_turn_prompt' is empty"),
        (5, "the row has 4 cells, the header 41"),
        (6, "field 'first_turn_prompt' holds a lone surro"),
    ]
    assert intake.counts["bad rows"] == 4 and intake.counts["rows"] == 7


def test_a_text_that_is_none_costs_its_turn_and_not_the_ones_before(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [ca_row("1", EAT, DRINK, SLEEP)])
    path.write_bytes(path.read_bytes().replace(b"Milk.", b"M\xe9lk."))
    found, intake = read(f"ca:{path}")
    assert [c.id for c in found] == ["ca-1-1ba", "ca-1-1bc", "ca-1-1bd"]
    assert intake.counts["turns that cannot be used"] == intake.counts["turns after a gap"] == 1
    assert "field 'second_turn_response_b' holds a lone surrogate" in intake.shown[0].reason


def test_columns_that_are_missing_and_feedback_that_may_be(tmp_path: Path) -> None:
    row = ca_row("1", EAT)
    less = {name: text for name, text in row.items() if not name.endswith("_feedback")}
    for form, write in FORMS.items():
        folder = tmp_path / form
        folder.mkdir()
        found, _ = read(f"ca:{write(folder, [less])}")
        assert [c.explanation for c in found] == [""] * 3, form
    del less["third_turn_prompt"], less["assigned_lang"]
    with pytest.raises(DataError, match="lacks the columns assigned_lang, third_turn_prompt; it"):
        read(f"ca:{write_csv(tmp_path / 'less.csv', [less])}")


def test_a_folder_of_files_is_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "b.parquet", [ca_row("2", DRINK)])
    write_csv(folder / "a.csv", [ca_row("1", DRINK)])
    found, _ = read(f"ca:{folder}")
    assert [c.id for c in found] == ["ca-1-1ab", "ca-2-1ab"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds neither a data set that `datasets` saved nor"):
        read(f"ca:{tmp_path / 'empty'}")
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(DataError, match="no.parquet: cannot be read as Parquet"):
        read(f"ca:{tmp_path / 'no.parquet'}")
    with pytest.raises(DataError, match="none.csv: cannot be read: No such file"):
        read(f"ca:{tmp_path / 'none.csv'}")


def test_an_unclosed_quote_says_how_far_it_reached(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [ca_row(str(i), DRINK) for i in range(4)])
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace("And to", '"And to')
    path.write_text("\n".join(lines) + "\n")
    found, intake = read(f"ca:{path}")
    assert [c.id for c in found] == ["ca-0-1ab"]
    (bad,) = intake.shown
    assert bad.line == 3 and "it ends on line 5; is a quote open" in bad.reason


def test_real_pairs_of_hh(shared_data: Path) -> None:
    path = shared_data / "hh_helpful" / "test.jsonl"
    found, intake = read(f"hh:{path}")
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert intake.counts["rows"] == len(raw) == 2354
    assert len(found) + intake.counts["bad rows"] == 2354 and len(found) > 2300
    for comparison in found:
        row = raw[comparison.line - 1]
        assert row["chosen"].endswith(comparison.chosen)
        assert row["rejected"].rstrip().endswith(comparison.rejected)
        assert comparison.root and row["chosen"].find(comparison.root) < 20
        turns = ("\n\n" + comparison.prompt).count("\n\nHuman:")
        assert row["chosen"].count("\n\nHuman:") == max(1, turns)


def test_json_lines_with_a_mapping(tmp_path: Path) -> None:
    row = {
        "question": " Why? ",
        "answers": {"best": "Because.", "worst": "No."},
        "note": "clear",
        "n": 4,
        "other": [1],
    }
    path = write_lines(tmp_path / "p.jsonl", [row])
    mapping = "prompt=question,chosen=answers.best,rejected=answers.worst,explanation=note,id=n"
    (found,), intake = read(f"jsonl:{path},{mapping}")
    assert summary([found]) == [("4", "Why?", "Because.", "No.", "clear")]
    assert found.root == "Why?" and intake.counts == {"rows": 1, "comparisons read": 1}


def test_json_lines_of_chat_messages(tmp_path: Path) -> None:
    def said(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    asked = [said("system", "Be kind."), said("user", "Hi"), said("assistant", "Hello"),
             said("user", "Why?")]  # fmt: skip
    answer = [said("user", "Hi"), said("assistant", "So.")]
    rows = [{"prompt": asked, "chosen": answer, "rejected": "No.", "root": "Hi"}]
    rows.append({"prompt": asked[:3], "chosen": "a", "rejected": "b"})
    path = write_lines(tmp_path / "p.jsonl", rows)
    (found,), intake = read(f"jsonl:{path}")
    assert found.prompt == conversation([("Hi", "Hello")], "Why?")
    assert (found.chosen, found.rejected, found.root, found.id) == ("So.", "No.", "Hi", "line-1")
    assert "does not end with a user's message" in intake.shown[0].reason


def test_json_lines_that_are_bad(tmp_path: Path) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c", "language": "fr"}
    rows: list = [
        good,
        "{",
        good | {"chosen": ""},
        good | {"rejected": " b "},
        {"prompt": "a"},
        good | {"prompt": 3},
    ]
    path = write_lines(tmp_path / "p.jsonl", rows)
    with path.open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n')
    found, intake = read(f"jsonl:{path}", languages=("en",))
    assert not found and intake.counts["rows of other languages"] == 1
    found, intake = read(f"jsonl:{path}")
    assert len(found) == 1 and intake.counts["bad rows"] == 6 and intake.counts["rows"] == 7
    assert [r.line for r in intake.shown] == [2, 3, 4, 5, 6]
    assert "chosen and rejected are the same text" in intake.shown[2].reason
    assert "field 'chosen', for chosen, is missing" in intake.shown[3].reason


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("csv:x", "unknown kind of preferences 'csv'; known: ca:PATH, hh:PATH"),
        ("ca:", "expected ca:PATH"),
        ("hh:x,prompt=y", "'prompt=y' is no FIELD=KEY of a jsonl file"),
        ("jsonl:x,asked=y", "'asked' is none of prompt, chosen, rejected"),
        ("embedded:0", "ROWS must be at least 1"),
        ("embedded:1,2,3", "expected embedded"),
    ],
)
def test_specifications_that_are_wrong(spec: str, said: str) -> None:
    with pytest.raises(DataError, match=said.replace("[", r"\[")):
        read(spec)


def test_embedded_choices_agree_with_the_truth_of_their_texts() -> None:
    from visa_core.data.embedded import truth

    found, _ = read("embedded:60,3")
    assert len({c.id for c in found}) == len(found) > 150
    for comparison in found:
        assert comparison.chosen != comparison.rejected
        facts = [set(truth.parse(text).facts) for text in (comparison.chosen, comparison.rejected)]
        assert facts[0] == facts[1] and len(facts[0]) == 2
    assert [c.id for c in read("embedded:60,3")[0]] == [c.id for c in found]
    assert {c.explanation == "" for c in found} == {True, False}
