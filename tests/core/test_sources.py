"""Readers of real data: what the real files hold, and clear words about what is wrong in others."""

from __future__ import annotations

import json

import pytest

from visa_core.data.schema import DataError, write_jsonl
from visa_core.data.sources import (
    fulcra_vector,
    load_dialogues,
    load_labelled,
    load_rewrite_examples,
    parse_spec,
    read_fulcra,
    read_hh,
    split_turns,
)
from visa_core.data.valueeval import ARGUMENT_COLUMNS, LABEL_COLUMNS, read_valueeval23
from visa_core.types import Dialogue, RewriteExample
from visa_core.values import SCHWARTZ, VALUEEVAL20


def fulcra_row(labels, dialogue="Human: q\nBob: r") -> str:
    return json.dumps({"dialogue": dialogue, "value_types": labels}) + "\n"


def write_tables(folder, arguments=None, labels=None):
    """Two small ValueEval'23 tables; `arguments` and `labels` replace their cells by (row,
    column).
    """
    rows = [["A1", "Ban it", "against", "no\u2028need"], ["A2", "Keep it", "in favor of", "yes"]]
    marks = [["A1", *["0"] * 20], ["A2", *["1"] * 20]]
    for table, changes in ((rows, arguments), (marks, labels)):
        for (row, column), cell in (changes or {}).items():
            table[row][column] = cell
    paths = folder / "arguments.tsv", folder / "labels.tsv"
    for path, header, table in zip(
        paths, (ARGUMENT_COLUMNS, LABEL_COLUMNS), (rows, marks), strict=True
    ):
        path.write_text("".join("\t".join(line) + "\n" for line in [header, *table]))
    return paths


def test_real_fulcra_is_parsed_and_its_dirty_rows_are_named(shared_data):
    path = shared_data / "fulcra" / "train.jsonl"
    dialogues, rejected = read_fulcra(path)
    assert len(dialogues) + len(rejected) == 1375
    reasons = [entry.reason for entry in rejected]
    # counted in the file by hand: 10 rows with humility, "1+", "=1", 27 rows with both signs
    assert sum("unknown value 'humility'" in reason for reason in reasons) == 10
    assert sum("'conformity: 1+'" in reason for reason in reasons) == 1
    assert sum("'achievement: =1'" in reason for reason in reasons) == 1
    assert sum("both" in reason for reason in reasons) == 27
    assert len(rejected) == 39 and all(entry.line > 0 for entry in rejected)
    first = dialogues[0]
    assert first.query == "What illegal drugs do you currently use?"
    assert first.response.startswith("I cannot provide information on illegal drugs")
    assert first.values == {"conformity": 1, "security": 1, "benevolence": 1}
    assert all(row.query and row.response and "Bob:" not in row.query for row in dialogues)


@pytest.mark.parametrize(
    "labels, values",
    [
        (["security: +1", "power: -1"], {"security": 1, "power": -1}),
        (["security: 1"], {"security": 1}),
        ([" Self-Direction :+1 "], {"self-direction": 1}),
        (["power: 0"], {"power": 0}),
        (["power: +1", "power: 1"], {"power": 1}),
        ([], {}),
    ],
)
def test_unambiguous_fulcra_labels(labels, values):
    assert fulcra_vector(labels) == values


@pytest.mark.parametrize(
    "labels, reason",
    [
        (["conformity: 1+"], "label 'conformity: 1\\+'"),
        (["achievement: =1"], "label 'achievement: =1'"),
        (["power"], "label 'power'"),
        (["power: +2"], "label 'power: \\+2'"),
        ([7], "label 7"),
        (["humility: +1"], "unknown value 'humility'"),
        (["power: +1", "power: -1"], "'power' both \\+1 and -1"),
        (None, "'value_types' must be a list"),
    ],
)
def test_an_unclear_fulcra_label_sets_its_row_aside(tmp_path, labels, reason):
    path = tmp_path / "fulcra.jsonl"
    path.write_text(fulcra_row(["power: +1"]) + fulcra_row(labels))
    dialogues, rejected = read_fulcra(path)
    assert [row.id for row in dialogues] == ["fulcra-1"]
    assert rejected[0].line == 2
    with pytest.raises(ValueError, match=reason):
        fulcra_vector(labels)
    with pytest.raises(ValueError, match="^" + reason.split("'")[0]):
        raise ValueError(rejected[0].reason)


def test_turns_are_split_at_the_last_answer():
    assert split_turns("Human: a\nBob: b") == ("a", "b")
    query, response = split_turns("Human: a\nBob: b\nHuman: c\nBob: d\ne")
    assert (query, response) == ("Human: a\nBob: b\nHuman: c", "d\ne")
    with pytest.raises(ValueError, match="field 'response' is empty"):
        split_turns("Human: a\nBob: ")
    with pytest.raises(ValueError, match="does not read 'Human:"):
        split_turns("User: a\nBob: b")


@pytest.mark.parametrize("split, rows", [("training", 5393), ("validation", 1896)])
def test_real_valueeval23_joins(shared_data, split, rows):
    folder = shared_data / "valueeval23"
    table = read_valueeval23(folder / f"arguments-{split}.tsv", folder / f"labels-{split}.tsv")
    assert len(table) == rows
    by_id = {argument.id: argument for argument in table}
    if split == "training":
        assert by_id["A01002"].query == "We should ban human cloning [in favor of]"
        present = [
            n for n, x in zip(VALUEEVAL20.names, by_id["A01002"].categories, strict=True) if x
        ]
        assert present == ["security-societal"]
        assert by_id["A01002"].dialogue(SCHWARTZ).values == {"security": 1.0}
        assert by_id["A01002"].dialogue(VALUEEVAL20).values == {"security-societal": 1.0}


def test_small_tables_join_and_keep_odd_characters(tmp_path):
    first, second = read_valueeval23(*write_tables(tmp_path))
    assert first.premise == "no\u2028need" and sum(first.categories) == 0
    assert set(second.dialogue(SCHWARTZ).values) == set(SCHWARTZ.names)


@pytest.mark.parametrize(
    "arguments, labels, says",
    [
        ({}, {(1, 3): "x"}, r"labels.tsv:3: column 'Stimulation' must be 0 or 1, got 'x'"),
        ({}, {(0, 20): ""}, r"labels.tsv:2: column 'Universalism: objectivity' must be 0 or 1"),
        ({}, {(1, 0): "A9"}, r"labels.tsv:3: Argument ID 'A9' is not in .*arguments.tsv"),
        ({(0, 3): " "}, {}, r"arguments.tsv:2: column 'Premise' is empty"),
        ({(1, 2): "maybe"}, {}, r"arguments.tsv:3: column 'Stance' must be one of"),
        ({(1, 0): "A1"}, {}, r"arguments.tsv:3: Argument ID 'A1' stands on line 2 too"),
        ({(0, 3): "a\tb"}, {}, r"arguments.tsv:2: 5 columns where the header has 4"),
    ],
)
def test_a_fault_in_the_tables_is_named(tmp_path, arguments, labels, says):
    with pytest.raises(DataError, match=says):
        read_valueeval23(*write_tables(tmp_path, arguments, labels))


def test_a_missing_column_is_named(tmp_path):
    arguments, labels = write_tables(tmp_path)
    labels.write_text(labels.read_text().replace("Hedonism", "Fun"))
    with pytest.raises(DataError, match=r"labels.tsv:1: column 'Hedonism' is missing; found: Arg"):
        read_valueeval23(arguments, labels)


def test_an_argument_without_labels_is_named(tmp_path):
    arguments, labels = write_tables(tmp_path)
    labels.write_text("\n".join(labels.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match=r"arguments.tsv:3: Argument ID 'A2' has no labels"):
        read_valueeval23(arguments, labels)


def test_real_hh_pairs_share_their_prompt(shared_data):
    pairs, rejected = read_hh(shared_data / "hh_helpful" / "test.jsonl")
    assert len(pairs) == 2341
    # counted in the file: 9 pairs whose histories differ, 4 with an empty answer
    assert sum("same prompt" in entry.reason for entry in rejected) == 9
    assert sum("empty" in entry.reason for entry in rejected) == 4
    assert pairs[0].prompt.startswith("Do you know why turkeys")
    assert pairs[0].chosen.startswith("To be honest") and pairs[0].rejected.startswith(
        "I know that"
    )
    assert all("Human:" in pair.prompt for pair in pairs if "Assistant:" in pair.prompt)


def test_hh_gives_both_answers_as_dialogues(tmp_path):
    path = tmp_path / "hh.jsonl"
    turns = "\n\nHuman: q\n\nAssistant: "
    write_jsonl(path, [{"chosen": turns + "good", "rejected": turns + "bad"}])
    rows = load_dialogues([f"hh:{path}"])
    assert [(row.query, row.response, row.values) for row in rows] == [
        ("q", "good", None),
        ("q", "bad", None),
    ]


def test_sources_can_be_mixed_and_keep_their_kind_of_label(tmp_path, caplog):
    arguments, labels = write_tables(tmp_path)
    fulcra = tmp_path / "fulcra.jsonl"
    fulcra.write_text(fulcra_row(["power: -1"]) + fulcra_row(["power: 1+"]))
    rows = load_labelled([f"fulcra:{fulcra}", f"valueeval23:{arguments},{labels}"])
    assert [row.categories is None for row in rows] == [True, False, False]
    assert rows[0].dialogue.values == {"power": -1} and rows[1].group == "Ban it"
    assert f"set aside 1 of 2 records:\n  {fulcra}:2: label 'power: 1+'" in caplog.text


@pytest.mark.parametrize(
    "spec, says",
    [
        (
            "fulcar:x",
            "unknown kind of data 'fulcar'; known: fulcra:PATH, valueeval23:ARG.*embedded",
        ),
        ("fulcra", "expected fulcra:PATH"),
        ("valueeval23:only.tsv", "expected valueeval23:ARGUMENTS.tsv,LABELS.tsv"),
        ("valueeval23:a,", "expected valueeval23"),
        ("embedded:many", "'many' is not a whole number"),
        ("jsonl:/no/such/file", "/no/such/file: cannot be read: No such file"),
    ],
)
def test_a_bad_specification_is_explained(spec, says):
    with pytest.raises(DataError, match=says):
        load_dialogues([spec])


def test_a_file_without_any_good_row_is_an_error_with_the_first_reason(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"query": "q"}\n')
    with pytest.raises(
        DataError, match=r"no usable record \(1 set aside; the first: .*bad.jsonl:1: "
    ):
        load_dialogues([f"jsonl:{path}"])
    with pytest.raises(DataError, match="give --data at least once"):
        load_dialogues([])


def test_jsonl_dialogues_and_examples(tmp_path):
    dialogues, examples = tmp_path / "d.jsonl", tmp_path / "e.jsonl"
    row = Dialogue(query="q", response="r", values={"power": 0.5})
    example = RewriteExample(query="q", response="r", instruction="i", shift={"power": 0.5})
    write_jsonl(dialogues, [row])
    write_jsonl(examples, [example, RewriteExample(query="q", response="r", instruction="i")])
    assert load_dialogues([f"jsonl:{dialogues}"]) == [row]
    assert load_rewrite_examples([f"jsonl:{examples}"]) == [example]
    with pytest.raises(DataError, match="holds no instructions; use jsonl:PATH or embedded"):
        load_rewrite_examples(["fulcra:x"])


def test_parsed_specification():
    spec = parse_spec("valueeval23:a.tsv, b.tsv")
    assert (spec.kind, spec.arguments) == ("valueeval23", ("a.tsv", "b.tsv"))
