"""Readers of real data, by specification: `fulcra:PATH`, `valueeval23:ARGUMENTS.tsv,LABELS.tsv`,
`hh:PATH`, `jsonl:PATH` and `embedded`.

FULCRA and ValueEval'23 say the same thing on different scales: FULCRA whether a response promotes
or opposes each of Schwartz's ten values, ValueEval'23 which of twenty finer categories an argument
draws on. `load_labelled` keeps both kinds of label, `load_dialogues` maps the second to the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visa_core.data.schema import (
    DataError,
    check_text,
    describe_rejected,
    numbered_lines,
    parse_object,
    read_jsonl,
    report_rejected,
)
from visa_core.data.valueeval import read_valueeval23
from visa_core.types import Dialogue, PreferencePair, Rejected, RewriteExample, VectorDict
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ

EMBEDDED_ROWS = 4000

FULCRA_LABEL = re.compile(r"\s*([A-Za-z][A-Za-z -]*?)\s*:\s*([+-]?)([01])\s*")
"""`security: +1`, `security: -1`, and `security: 1`, which can only mean +1."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A parsed specification: which reader, and its paths or arguments."""

    kind: str
    arguments: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class LabelledDialogue:
    """A dialogue and, from ValueEval'23, its twenty categories as 0 or 1 (else None).

    Rows of one `group` share a topic: a held-out set that shares topics with training flatters.
    """

    dialogue: Dialogue
    categories: tuple[int, ...] | None = None
    group: str = ""


def parse_spec(text: str) -> DataSpec:
    """Split "kind:argument,argument". Raises DataError that lists the kinds, or says what is
    missing.
    """
    kind, _, rest = text.partition(":")
    if kind not in READERS:
        raise DataError(
            f"--data {text!r}: unknown kind of data {kind!r}; known: "
            + ", ".join(f"{name}{usage}" for name, (usage, _) in READERS.items())
        )
    arguments = tuple(part.strip() for part in rest.split(",")) if rest else ()
    wanted = {"valueeval23": (2,), "embedded": (0, 1, 2)}.get(kind, (1,))
    if len(arguments) not in wanted or not all(arguments):
        raise DataError(f"--data {text!r}: expected {kind}{READERS[kind][0]}")
    return DataSpec(kind=kind, arguments=arguments, text=text)


def load_dialogues(specs: Sequence[str], space: ValueSpace = SCHWARTZ) -> list[Dialogue]:
    """All dialogues of the specifications, in order; what was set aside is reported in the log.

    Raises DataError for a specification or file that cannot be read, or when nothing valid is left.
    """
    return [labelled.dialogue for labelled in load_labelled(specs, space)]


def load_labelled(specs: Sequence[str], space: ValueSpace = SCHWARTZ) -> list[LabelledDialogue]:
    """Like `load_dialogues`, with the twenty categories kept where the source has them."""
    everything: list[LabelledDialogue] = []
    for text in specs:
        spec = parse_spec(text)
        rows, rejected = READERS[spec.kind][1](spec, space)
        report_rejected(rejected, len(rows) + len(rejected))
        _refuse_empty(text, rows, rejected)
        everything += rows
    if not everything:
        raise DataError("no data: give --data at least once")
    return everything


def load_rewrite_examples(
    specs: Sequence[str], space: ValueSpace = SCHWARTZ
) -> list[RewriteExample]:
    """Examples with instruction and shift, from `jsonl:PATH` and `embedded`, for the translator.

    Raises DataError like `load_dialogues`, and for kinds of data that hold no instructions.
    """
    everything: list[RewriteExample] = []
    for text in specs:
        spec = parse_spec(text)
        if spec.kind == "jsonl":
            needed = ("query", "response", "instruction", "shift")
            rows, rejected = read_jsonl(
                spec.arguments[0], RewriteExample, required=needed, space=space
            )
            report_rejected(rejected, len(rows) + len(rejected))
            _refuse_empty(text, rows, rejected)
        elif spec.kind == "embedded":
            count, seed = rows_and_seed(spec, EMBEDDED_ROWS)
            from visa_core.data import embedded

            rows = embedded.rewrites(count, seed)
        else:
            raise DataError(f"--data {text!r} holds no instructions; use jsonl:PATH or embedded")
        everything += rows
    if not everything:
        raise DataError("no data: give --data at least once")
    return everything


def _refuse_empty(text: str, rows: Sequence[object], rejected: Sequence[Rejected]) -> None:
    if not rows:
        first = f"; the first: {describe_rejected(rejected[0])}" if rejected else ""
        raise DataError(f"--data {text!r} has no usable record ({len(rejected)} set aside{first})")


def read_fulcra(
    path: str | Path, space: ValueSpace = SCHWARTZ
) -> tuple[list[Dialogue], list[Rejected]]:
    """FULCRA dialogues with their vectors. A row is set aside whole when any of its labels is
    unclear.

    Unclear are labels such as "conformity: 1+" or "achievement: =1", a value outside the ten
    ("humility"), and a value labelled both promoted and opposed. A value not named is 0.
    """
    dialogues: list[Dialogue] = []
    rejected: list[Rejected] = []
    for line, text in numbered_lines(path, rejected):
        try:
            data = parse_object(text)
            query, response = split_turns(check_text("dialogue", data.get("dialogue")))
            values = fulcra_vector(data.get("value_types"), space)
        except ValueError as error:
            rejected.append(Rejected(path=str(path), line=line, reason=str(error), text=text))
            continue
        dialogues.append(
            Dialogue(query=query, response=response, values=values, id=f"fulcra-{line}")
        )
    return dialogues, rejected


def fulcra_vector(labels: object, space: ValueSpace = SCHWARTZ) -> VectorDict:
    """The vector of labels such as ["security: +1"]. Raises ValueError that quotes the unclear
    label.
    """
    if not isinstance(labels, list):
        raise ValueError(f"field 'value_types' must be a list of labels, got {labels!r}")
    values: VectorDict = {}
    for label in labels:
        match = FULCRA_LABEL.fullmatch(label) if isinstance(label, str) else None
        if match is None:
            raise ValueError(
                f"label {label!r} in 'value_types' is not of the form 'security: +1' or 'power: -1'"
            )
        name, sign, size = match.groups()
        name = space.names[space.index(name)]
        value = float(f"{sign}{size}")
        if values.setdefault(name, value) != value:
            raise ValueError(f"'value_types' labels {name!r} both {values[name]:+g} and {value:+g}")
    return values


def split_turns(dialogue: str) -> tuple[str, str]:
    """(query, response) of "Human: ... Bob: ...": the response is the last turn of Bob.

    Earlier turns stay in the query with their speakers. Raises ValueError when a turn is missing
    or empty.
    """
    before, found, response = dialogue.rpartition("\nBob:")
    if not found or not before.startswith("Human:"):
        raise ValueError(
            "field 'dialogue' does not read 'Human: ...', then a new line and 'Bob: ...'"
        )
    query = before.removeprefix("Human:").strip() if before.count("Human:") == 1 else before.strip()
    return check_text("query", query), check_text("response", response.strip())


def read_hh(path: str | Path) -> tuple[list[PreferencePair], list[Rejected]]:
    """Preference pairs of HH: a shared prompt and two last answers.

    Set aside are pairs whose histories differ, which are no answers to one prompt, and empty
    answers.
    """
    pairs: list[PreferencePair] = []
    rejected: list[Rejected] = []
    for line, text in numbered_lines(path, rejected):
        try:
            pairs.append(hh_pair(parse_object(text), line))
        except ValueError as error:
            rejected.append(Rejected(path=str(path), line=line, reason=str(error), text=text))
    return pairs, rejected


def hh_pair(data: dict[str, Any], line: int) -> PreferencePair:
    """The pair of one line of HH. Raises ValueError with the reason why it is none."""
    history, chosen = _last_answer("chosen", data.get("chosen"))
    other_history, other = _last_answer("rejected", data.get("rejected"))
    if history != other_history:
        raise ValueError("'chosen' and 'rejected' do not answer the same prompt")
    return PreferencePair(prompt=history, chosen=chosen, rejected=other, id=f"hh-{line}")


def _last_answer(field: str, value: object) -> tuple[str, str]:
    history, found, answer = check_text(field, value).rpartition("\n\nAssistant:")
    if not found:
        raise ValueError(f"field {field!r} has no turn of the assistant")
    history = history.strip()
    if history.count("Human:") == 1:
        history = history.removeprefix("Human:").strip()
    if not answer.strip():
        raise ValueError(f"the last answer in field {field!r} is empty")
    return check_text("prompt", history), answer.strip()


Rows = tuple[list[LabelledDialogue], list[Rejected]]


def _plain(dialogues: Sequence[Dialogue]) -> list[LabelledDialogue]:
    return [LabelledDialogue(dialogue=dialogue) for dialogue in dialogues]


def _load_fulcra(spec: DataSpec, space: ValueSpace) -> Rows:
    dialogues, rejected = read_fulcra(spec.arguments[0], space)
    return _plain(dialogues), rejected


def _load_valueeval23(spec: DataSpec, space: ValueSpace) -> Rows:
    arguments = read_valueeval23(*spec.arguments)
    rows = [
        LabelledDialogue(
            dialogue=argument.dialogue(space),
            categories=argument.categories,
            group=argument.conclusion,
        )
        for argument in arguments
    ]
    return rows, []


def _load_hh(spec: DataSpec, space: ValueSpace) -> Rows:
    pairs, rejected = read_hh(spec.arguments[0])
    dialogues = []
    for pair in pairs:
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            dialogues.append(Dialogue(query=pair.prompt, response=answer, id=f"{pair.id}-{side}"))
    return _plain(dialogues), rejected


def _load_jsonl(spec: DataSpec, space: ValueSpace) -> Rows:
    dialogues, rejected = read_jsonl(spec.arguments[0], Dialogue, space=space)
    return _plain(dialogues), rejected


def _load_embedded(spec: DataSpec, space: ValueSpace) -> Rows:
    rows, seed = rows_and_seed(spec, EMBEDDED_ROWS)
    from visa_core.data import embedded

    return _plain(embedded.dialogues(rows, seed)), []


def rows_and_seed(spec: DataSpec, rows: int) -> tuple[int, int]:
    """The numbers of "embedded[:ROWS[,SEED]]"; `rows` and 0 where they are not given.

    Raises DataError for what is no whole number, and for no rows.
    """
    numbers = [rows, 0]
    for position, argument in enumerate(spec.arguments):
        if not argument.isdecimal():
            raise DataError(f"--data {spec.text!r}: {argument!r} is not a whole number")
        numbers[position] = int(argument)
    if not numbers[0]:
        raise DataError(f"--data {spec.text!r}: ROWS must be at least 1")
    return numbers[0], numbers[1]


READERS: dict[str, tuple[str, Callable[[DataSpec, ValueSpace], Rows]]] = {
    "fulcra": (":PATH", _load_fulcra),
    "valueeval23": (":ARGUMENTS.tsv,LABELS.tsv", _load_valueeval23),
    "hh": (":PATH", _load_hh),
    "jsonl": (":PATH", _load_jsonl),
    "embedded": ("[:ROWS[,SEED]]", _load_embedded),
}
"""Kind of data -> how its arguments are written, and its reader."""
