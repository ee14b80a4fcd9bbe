"""Community Alignment's wide rows, a conversation each, as comparisons: one turn after another.

Schema: conversation_id, assigned_lang, annotator_id; for T in first ... fourth T_turn_prompt,
T_turn_response_a ... _d, T_turn_preferred_response ("response_a" ...), T_turn_feedback. A turn
gives a comparison of its preferred response with each other one. A later turn's history is the
preferred responses before it, so the turns after one without a valid preference are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from visa_core.data.construction.comparison import Comparison, Intake, conversation, place
from visa_core.data.construction.tabular import Row, table_rows
from visa_core.data.schema import check_text

TURNS = ("first", "second", "third", "fourth")
LETTERS = ("a", "b", "c", "d")
STRAY = "<|end_of_text|>"

NEEDED = (
    "conversation_id",
    "assigned_lang",
    *(
        f"{turn}_turn_{part}"
        for turn in TURNS
        for part in ("prompt", *(f"response_{x}" for x in LETTERS), "preferred_response")
    ),
)
"""Columns without which a file is refused; feedback columns are optional, as explanations are."""


def read_community_alignment(
    path: str | Path, intake: Intake, languages: Iterable[str] = ()
) -> Iterator[Comparison]:
    """Comparisons of a CSV or Parquet file, or of a `datasets` folder, as they are read.

    languages: codes of assigned_lang to keep; all without any. What is left out is counted in
    `intake`: bad rows with file and line, rows of other languages, turns after a gap, candidates
    that repeat another or equal the chosen one. Raises DataError for a file that cannot be read or
    lacks a column.
    """
    wanted = {code.strip().lower() for code in languages}
    for row in table_rows(path, NEEDED, intake):
        intake.counts["rows"] += 1
        language = _text(row.cells.get("assigned_lang")).lower()
        if wanted and language not in wanted:
            intake.counts["rows of other languages"] += 1
            continue
        try:
            for comparison in _comparisons(row, language, intake):
                intake.counts["comparisons read"] += 1
                yield comparison
        except ValueError as error:
            intake.reject("bad rows", place(row.path, row.line, error))


def _comparisons(row: Row, language: str, intake: Intake) -> list[Comparison]:
    """All comparisons of a conversation. Raises ValueError for a row that is bad as a whole."""
    name = _text(row.cells.get("conversation_id"))
    if not name:
        raise ValueError("field 'conversation_id' is empty")
    if not _cell(row, "first_turn_prompt"):
        raise ValueError("field 'first_turn_prompt' is empty")
    found: list[Comparison] = []
    history: list[tuple[str, str]] = []
    for number, turn in enumerate(TURNS, 1):
        try:
            prompt = _cell(row, f"{turn}_turn_prompt")
            if not prompt:
                break
            explanation = _cell(row, f"{turn}_turn_feedback")
            chosen, candidates = _candidates(row, turn, intake)
        except ValueError as error:
            intake.reject("turns that cannot be used", place(row.path, row.line, error))
            break
        preferred = candidates.pop(chosen)
        for letter, other in candidates.items():
            found.append(
                Comparison(
                    prompt=conversation(history, prompt),
                    chosen=preferred,
                    rejected=other,
                    explanation=explanation,
                    id=f"ca-{name}-{number}{chosen}{letter}",
                    root=history[0][0] if history else prompt,
                    language=language,
                    path=row.path,
                    line=row.line,
                )
            )
        history.append((prompt, preferred))
    later = TURNS[len(history) + 1 :]
    cut = sum(bool(_text(row.cells.get(f"{turn}_turn_prompt"))) for turn in later)
    intake.counts["turns after a gap"] += cut
    return found


def _candidates(row: Row, turn: str, intake: Intake) -> tuple[str, dict[str, str]]:
    """Letter of the preferred candidate, and the different candidates by letter.

    Raises ValueError without a preference for a candidate that is there.
    """
    field = f"{turn}_turn_preferred_response"
    wanted = _text(row.cells.get(field)).lower()
    if not wanted:
        raise ValueError(f"field {field!r} is empty")
    chosen = wanted.removeprefix("response_")
    if chosen not in LETTERS:
        raise ValueError(
            f"field {field!r} is {wanted[:40]!r}, which is none of "
            + ", ".join(f"response_{letter}" for letter in LETTERS)
        )
    texts = {letter: _cell(row, f"{turn}_turn_response_{letter}") for letter in LETTERS}
    if not texts[chosen]:
        raise ValueError(f"field {field!r} names response_{chosen}, which is empty")
    seen = {_plain(texts[chosen]): chosen}
    kept = {chosen: texts[chosen]}
    for letter, text in texts.items():
        if letter == chosen or not text:
            continue
        first = seen.setdefault(_plain(text), letter)
        if first == letter:
            kept[letter] = text
        elif first == chosen:
            intake.counts["candidates equal to the chosen one"] += 1
        else:
            intake.counts["candidates that repeat another"] += 1
    if len(kept) == 1:
        intake.counts["turns without a second candidate"] += 1
    return chosen, kept


def _cell(row: Row, field: str) -> str:
    """A text of the row without stray end tokens; "" when there is none."""
    value = row.cells.get(field)
    if value is None or value == "":
        return ""
    return check_text(field, value, may_be_empty=True).replace(STRAY, "").strip()


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _plain(text: str) -> str:
    return " ".join(text.split())
