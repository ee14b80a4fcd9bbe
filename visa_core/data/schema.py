"""JSON lines on disk to typed records and back: validated where they enter, nothing dropped in
silence.

A bad line is set aside with its file, line and reason; the readers return what was set aside, and
`report_rejected` tells it. Writing is atomic.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from visa_core.types import Rejected
from visa_core.value_space import ValueSpace
from visa_core.values import SCHWARTZ

Record = TypeVar("Record")

NLI_LABELS = ("entailment", "neutral", "contradiction")

VECTOR_LIMITS = {"values": 1.0, "target": 1.0, "shift": 2.0}
"""Fields that hold a value vector, and how far its entries may reach from 0."""

MAY_BE_EMPTY = ("id", "explanation")

log = logging.getLogger("visa_core.data")


class DataError(ValueError):
    """Input that cannot be read; the message names the file, the line or column, and what is
    wrong.
    """


def read_jsonl(
    path: str | Path,
    record_type: type[Record],
    *,
    required: Sequence[str] | None = None,
    space: ValueSpace = SCHWARTZ,
) -> tuple[list[Record], list[Rejected]]:
    """Read records of a JSON-lines file: (those that are valid, those set aside).

    required: fields that must be there and not null; by default those without a default.
    space: the value names that vector fields may use.
    Raises DataError when the file itself cannot be read. Blank lines are no records.
    """
    records: list[Record] = []
    rejected: list[Rejected] = []
    for line, text in numbered_lines(path, rejected):
        try:
            records.append(parse_record(text, record_type, required=required, space=space))
        except ValueError as error:
            rejected.append(Rejected(path=str(path), line=line, reason=str(error), text=text))
    return records, rejected


def read_jsonl_strict(
    path: str | Path,
    record_type: type[Record],
    *,
    required: Sequence[str] | None = None,
    space: ValueSpace = SCHWARTZ,
) -> list[Record]:
    """Like `read_jsonl`, but raises DataError at the first bad line as `path:line: reason`."""
    records, rejected = read_jsonl(path, record_type, required=required, space=space)
    if rejected:
        raise DataError(describe_rejected(rejected[0]))
    return records


def numbered_lines(path: str | Path, rejected: list[Rejected]) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their 1-based numbers; lines that are not UTF-8 go to
    `rejected`.
    """
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    reason = f"not valid UTF-8 at byte {error.start + 1}"
                    rejected.append(Rejected(path=str(path), line=number, reason=reason))
                    continue
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_record(
    text: str,
    record_type: type[Record],
    *,
    required: Sequence[str] | None = None,
    space: ValueSpace = SCHWARTZ,
) -> Record:
    """One line of JSON as a record. Raises ValueError with the reason, which names the field."""
    data = parse_object(text)
    fields = {field.name: field for field in dataclasses.fields(record_type)}  # type: ignore[arg-type]
    _refuse_unknown_keys(data, list(fields))
    if required is None:
        required = [name for name, field in fields.items() if _has_no_default(field)]
    for name in required:
        if data.get(name) is None:
            raise ValueError(f"field {name!r} is missing")
    for name, value in data.items():
        _check_field(name, value, space, nullable=fields[name].default is None)
    return record_type(**data)


def parse_object(text: str) -> dict[str, Any]:
    """One line of JSON as a dictionary. Raises ValueError with the reason."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    return data


def check_text(name: str, value: object, may_be_empty: bool = False) -> str:
    """The value as text that can be encoded. Raises ValueError that names the field."""
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} must be text, got {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise ValueError(f"field {name!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"field {name!r} holds a lone surrogate, which is no text") from None
    return value


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Write dataclass records, without their None fields, or dictionaries as they are, one a line,
    aside and renamed.

    Raises DataError, with what was there before untouched, when the file cannot be written.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as file:
            for record in records:
                row = record if isinstance(record, dict) else _without_none(record)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if scratch.exists():
            scratch.unlink()


def _without_none(record: Any) -> dict[str, Any]:
    row = dataclasses.asdict(record)
    return {name: value for name, value in row.items() if value is not None}


def describe_rejected(rejected: Rejected) -> str:
    """`path:line: reason`, as compilers write it."""
    return f"{rejected.path}:{rejected.line}: {rejected.reason}"


def report_rejected(rejected: Sequence[Rejected], total: int, show: int = 5) -> None:
    """Log how many of `total` records were set aside, and the first few with file, line and
    reason.
    """
    if not rejected:
        return
    shown = "".join(f"\n  {describe_rejected(entry)}" for entry in rejected[:show])
    more = f"\n  and {len(rejected) - show} more" if len(rejected) > show else ""
    log.warning("set aside %d of %d records:%s%s", len(rejected), total, shown, more)


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _refuse_unknown_keys(data: dict[str, Any], known: list[str]) -> None:
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown field {key!r}; {hint}known fields: {', '.join(known)}")


def _check_field(name: str, value: object, space: ValueSpace, nullable: bool) -> None:
    if value is None and nullable:
        return
    if name in VECTOR_LIMITS:
        if not isinstance(value, dict):
            raise ValueError(f"field {name!r} must be an object of value names and numbers")
        try:
            space.vector(value, VECTOR_LIMITS[name])
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from None
        return
    check_text(name, value, may_be_empty=name in MAY_BE_EMPTY)
    if name == "label" and value not in NLI_LABELS:
        raise ValueError(f"field 'label' must be one of {', '.join(NLI_LABELS)}, got {value!r}")
