"""Comparisons by specification: `ca:PATH`, `hh:PATH`, `jsonl:PATH[,FIELD=KEY ...]`, and
`embedded[:PROMPTS[,SEED]]`, which needs no file.

JSON lines need `prompt`, `chosen` and `rejected`, and may have `explanation`, `id`, `root` (what
splits go by; the prompt without it) and `language`. Other names are mapped: `jsonl:PATH,prompt=
question,chosen=answers.best` reads the prompt from "question" and the chosen response from "best"
inside "answers". A text may also be a list of chat messages ({"role", "content"}): a prompt's
messages become one text with its speakers, and of a response's messages the last one counts. Keys
that are not mapped are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visa_core.data.construction.comparison import Comparison, Intake, conversation, place
from visa_core.data.schema import DataError, check_text, numbered_lines, parse_object
from visa_core.data.sources import DataSpec, hh_pair, rows_and_seed
from visa_core.types import Rejected

KINDS = {
    "ca": ":PATH",
    "hh": ":PATH",
    "jsonl": ":PATH[,FIELD=KEY ...]",
    "embedded": "[:PROMPTS[,SEED]]",
}
FIELDS = ("prompt", "chosen", "rejected", "explanation", "id", "root", "language")
NEEDED = FIELDS[:3]
EMBEDDED_PROMPTS = 1000


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parsed specification."""

    kind: str
    path: Path
    keys: Mapping[str, str]
    numbers: tuple[int, int] = (0, 0)
    """Prompts and seed of embedded choices."""


def parse_source(text: str) -> Source:
    """Raises DataError that lists the kinds, or says what is missing or unknown."""
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        known = ", ".join(f"{name}{usage}" for name, usage in KINDS.items())
        raise DataError(f"--data {text!r}: unknown kind of preferences {kind!r}; known: {known}")
    if kind == "embedded":
        arguments = tuple(rest.split(",")) if rest else ()
        if len(arguments) > 2:
            raise DataError(f"--data {text!r}: expected {kind}{KINDS[kind]}")
        numbers = rows_and_seed(
            DataSpec(kind=kind, arguments=arguments, text=text), EMBEDDED_PROMPTS
        )
        return Source(kind=kind, path=Path(), keys={}, numbers=numbers)
    path, *pairs = (part.strip() for part in rest.split(","))
    if not path:
        raise DataError(f"--data {text!r}: expected {kind}{KINDS[kind]}")
    keys: dict[str, str] = {}
    for pair in pairs:
        name, equals, key = (part.strip() for part in pair.partition("="))
        if kind != "jsonl" or not equals or not key:
            raise DataError(f"--data {text!r}: {pair!r} is no FIELD=KEY of a jsonl file")
        if name not in FIELDS:
            raise DataError(f"--data {text!r}: {name!r} is none of {', '.join(FIELDS)}")
        keys[name] = key
    return Source(kind=kind, path=Path(path), keys=keys)


def read_comparisons(
    specs: Sequence[str], intake: Intake, languages: Sequence[str] = ()
) -> Iterator[Comparison]:
    """Comparisons of all specifications in order, as they are read.

    languages: codes to keep, where records name theirs. Raises DataError for a specification or
    file that cannot be read.
    """
    if not specs:
        raise DataError("no data: give --data at least once")
    for source in [parse_source(text) for text in specs]:
        if source.kind == "ca":
            from visa_core.data.construction.community_alignment import read_community_alignment

            yield from read_community_alignment(source.path, intake, languages)
        elif source.kind == "hh":
            yield from _lines(source.path, intake, _hh_comparison)
        elif source.kind == "embedded":
            yield from _embedded(*source.numbers, intake)
        else:
            wanted = {code.strip().lower() for code in languages}
            for comparison in _lines(source.path, intake, _mapped(source.keys)):
                if wanted and comparison.language and comparison.language.lower() not in wanted:
                    intake.counts["rows of other languages"] += 1
                    continue
                yield comparison


def _embedded(prompts: int, seed: int, intake: Intake) -> Iterator[Comparison]:
    from visa_core.data.embedded import choices

    for number, pair in enumerate(choices(prompts, seed), 1):
        intake.counts["rows"] += 1
        intake.counts["comparisons read"] += 1
        yield Comparison(
            prompt=pair.prompt,
            chosen=pair.chosen,
            rejected=pair.rejected,
            explanation=pair.explanation,
            id=pair.id,
            root=pair.prompt,
            language="en",
            path="embedded",
            line=number,
        )


def _lines(
    path: Path, intake: Intake, read: Callable[[dict[str, Any], str, int], Comparison]
) -> Iterator[Comparison]:
    """One comparison a line; bad lines are set aside."""
    undecoded: list[Rejected] = []
    for line, text in numbered_lines(path, undecoded):
        _count_undecoded(undecoded, intake)
        intake.counts["rows"] += 1
        try:
            comparison = read(parse_object(text), str(path), line)
            if " ".join(comparison.chosen.split()) == " ".join(comparison.rejected.split()):
                raise ValueError("chosen and rejected are the same text")
        except ValueError as error:
            intake.reject("bad rows", place(path, line, error, text))
            continue
        intake.counts["comparisons read"] += 1
        yield comparison
    _count_undecoded(undecoded, intake)


def _count_undecoded(undecoded: list[Rejected], intake: Intake) -> None:
    for rejected in undecoded:
        intake.counts["rows"] += 1
        intake.reject("bad rows", rejected)
    undecoded.clear()


def _hh_comparison(data: dict[str, Any], path: str, line: int) -> Comparison:
    pair = hh_pair(data, line)
    first = pair.prompt.removeprefix("Human:").split("\n\nAssistant:")[0].strip()
    return Comparison(
        prompt=pair.prompt,
        chosen=pair.chosen,
        rejected=pair.rejected,
        id=pair.id,
        root=first,
        path=path,
        line=line,
    )


def _mapped(keys: Mapping[str, str]) -> Callable[[dict[str, Any], str, int], Comparison]:
    def read(data: dict[str, Any], path: str, line: int) -> Comparison:
        texts = {
            name: _text_at(data, keys.get(name, name), name, needed=name in NEEDED)
            for name in FIELDS
        }
        texts["root"] = texts["root"] or texts["prompt"]
        texts["id"] = texts["id"] or f"line-{line}"
        return Comparison(path=path, line=line, **texts)

    return read


def _text_at(data: Mapping[str, Any], key: str, field: str, needed: bool) -> str:
    value: Any = data
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None and not needed:
        return ""
    if value is None:
        raise ValueError(f"field {key!r}, for {field}, is missing")
    if field in NEEDED and isinstance(value, list):
        value = _messages_text(value, key, field)
    if field in ("id", "language") and isinstance(value, int):
        value = str(value)
    return check_text(key, value, may_be_empty=not needed).strip()


def _messages_text(messages: list[Any], key: str, field: str) -> str:
    """One text of chat messages: the last one of a response, all of a prompt."""
    texts: list[tuple[str, str]] = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError(f"field {key!r} is a list, but not of messages with role and content")
        texts.append((str(message.get("role", "")), message["content"]))
    if not texts:
        raise ValueError(f"field {key!r} is empty")
    if field != "prompt":
        return texts[-1][1]
    turns = [text for role, text in texts if role != "system"]
    if len(turns) % 2 == 0:
        raise ValueError(f"field {key!r}: the conversation does not end with a user's message")
    before = list(zip(turns[:-1:2], turns[1::2], strict=True))
    return conversation(before, turns[-1])
