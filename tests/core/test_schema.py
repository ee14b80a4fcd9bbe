"""JSON lines: round trips, and every kind of bad line told by file, line and field."""

from __future__ import annotations

import json

import pytest

from visa_core.data.schema import (
    DataError,
    parse_record,
    read_jsonl,
    read_jsonl_strict,
    report_rejected,
    write_jsonl,
)
from visa_core.types import Dialogue, NLIPair, PreferencePair, RewriteExample
from visa_core.value_space import Dimension, ValueSpace

RECORDS = [
    Dialogue(query="Q é\n2", response="R 🙂", values={"power": -0.5}, id="a"),
    Dialogue(query="q", response="r"),
]


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.mark.parametrize(
    "record",
    [
        *RECORDS,
        RewriteExample(
            query="q", response="r", instruction="i", shift={"power": -2}, reference="x"
        ),
        NLIPair(premise="p", hypothesis="h", label="neutral"),
        PreferencePair(prompt="p", chosen="c", rejected="r", explanation=""),
    ],
)
def test_records_survive_the_disk(tmp_path, record):
    path = tmp_path / "records.jsonl"
    write_jsonl(path, [record, record])
    assert read_jsonl(path, type(record)) == ([record, record], [])


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"query": "q", "response": ', "not valid JSON"),
        ('["query"]', "expected a JSON object, got list"),
        ({"query": "q"}, "field 'response' is missing"),
        ({"query": "q", "response": None}, "field 'response' is missing"),
        ({"query": "q", "response": "  "}, "field 'response' is empty"),
        ({"query": "q", "response": 3}, "field 'response' must be text, got int"),
        ({"query": "q", "response": "\ud800"}, "lone surrogate"),
        (
            {"query": "q", "response": "r", "vlaues": {}},
            "unknown field 'vlaues'; did you mean 'values'",
        ),
        ({"query": "q", "response": "r", "values": [1]}, "field 'values' must be an object"),
        ({"query": "q", "response": "r", "values": {"pwer": 1}}, "unknown value 'pwer'"),
        (
            {"query": "q", "response": "r", "values": {"power": 1.5}},
            r"must be in \[-1, 1\], got 1.5",
        ),
        (
            {"query": "q", "response": "r", "values": {"power": "1+"}},
            r"must be a number, got '1\+'",
        ),
        ('{"query": "q", "response": "r", "values": {"power": NaN}}', "must be finite"),
        ('{"a":' * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_a_bad_line_is_set_aside_with_its_place(tmp_path, line, reason):
    path = tmp_path / "bad.jsonl"
    good = {"query": "q", "response": "r"}
    path.write_text(lines(good, "", line, good))
    records, rejected = read_jsonl(path, Dialogue)
    assert len(records) == 2
    assert [(entry.path, entry.line) for entry in rejected] == [(str(path), 3)]
    with pytest.raises(DataError, match=f"bad.jsonl:3: .*({reason})"):
        read_jsonl_strict(path, Dialogue)


def test_bytes_that_are_not_text_are_set_aside(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"query": "q", "response": "caf\xe9"}\n{"query": "q", "response": "r"}\n')
    records, rejected = read_jsonl(path, Dialogue)
    assert len(records) == 1 and rejected[0].line == 1 and "not valid UTF-8" in rejected[0].reason


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": "q", "response": "r"}\r\n')
    assert read_jsonl(path, Dialogue) == ([Dialogue(query="q", response="r")], [])


def test_shift_reaches_two_and_label_is_one_of_three():
    example = '{"query": "q", "response": "r", "instruction": "i", "shift": {"power": %s}}'
    assert parse_record(example % 2, RewriteExample).shift == {"power": 2}
    with pytest.raises(ValueError, match="field 'shift'.*2.5"):
        parse_record(example % 2.5, RewriteExample)
    with pytest.raises(ValueError, match="field 'label' must be one of entailment"):
        parse_record('{"premise": "p", "hypothesis": "h", "label": "yes"}', NLIPair)


def test_required_fields_can_be_chosen():
    line = '{"query": "q", "response": "r"}'
    with pytest.raises(ValueError, match="field 'values' is missing"):
        parse_record(line, Dialogue, required=("values",))
    assert parse_record('{"query": "q", "response": "r", "values": null}', Dialogue).values is None


def test_a_custom_space_has_its_own_names():
    space = ValueSpace(
        name="care", dimensions=(Dimension(name="warmth", title="Warmth", definition="Warm."),)
    )
    line = '{"query": "q", "response": "r", "values": {"warmth": 1}}'
    assert parse_record(line, Dialogue, space=space).values == {"warmth": 1}
    with pytest.raises(ValueError, match="unknown value 'warmth'"):
        parse_record(line, Dialogue)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl: cannot be read: No such file"):
        read_jsonl(tmp_path / "nowhere.jsonl", Dialogue)


def test_writing_fails_whole_or_not_at_all(tmp_path):
    path = tmp_path / "records.jsonl"
    write_jsonl(path, RECORDS)

    def interrupted():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, interrupted())
    assert read_jsonl_strict(path, Dialogue) == RECORDS
    assert [entry.name for entry in tmp_path.iterdir()] == ["records.jsonl"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="records.jsonl: cannot be written"):
        write_jsonl(tmp_path / "file" / "records.jsonl", RECORDS)


def test_report_counts_and_shows_the_first(tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines(*["{"] * 7))
    _, rejected = read_jsonl(path, Dialogue)
    report_rejected(rejected, total=10)
    assert "set aside 7 of 10 records" in caplog.text
    assert "bad.jsonl:5:" in caplog.text and "bad.jsonl:6:" not in caplog.text
    assert "and 2 more" in caplog.text
