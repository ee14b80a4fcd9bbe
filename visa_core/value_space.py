"""A value space: the names a value vector's K entries stand for, and how vectors are read and
written.

Everything downstream takes a `ValueSpace`, so a custom space from a JSON file works through the
same code as Schwartz's ten (visa_core/values.py).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class UnknownValueError(ValueError):
    """A value name that the space does not have; the message offers close matches and the known
    names.
    """

    def __init__(self, name: str, known: Sequence[str], space: str) -> None:
        close = difflib.get_close_matches(normalise_name(name), known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        super().__init__(
            f"unknown value {name!r} in space {space!r}.{hint} Known values: {', '.join(known)}."
        )


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One value. `name` is lower case with hyphens (used in files), `title` is for people."""

    name: str
    title: str
    definition: str
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Two groups of values that pull against each other; a value may stand in the middle and
    belong to neither.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    positive_name: str
    negative_name: str


@dataclass(frozen=True, kw_only=True)
class ValueSpace:
    """An ordered set of K dimensions, and the axes that relate them.

    Neighbours in `dimensions` are neighbours on the value circle where the space has one. Raises
    ValueError when a name is repeated or malformed, and UnknownValueError when an axis names a
    dimension that is not there.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    axes: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise ValueError(f"value space {self.name!r} has no dimensions")
        for dimension in self.dimensions:
            if not _NAME.fullmatch(dimension.name):
                raise ValueError(
                    f"value space {self.name!r}: dimension name {dimension.name!r} "
                    "must be lower case words joined by hyphens"
                )
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"value space {self.name!r} has repeated dimensions: {', '.join(repeated)}"
            )
        for axis in self.axes:
            for name in (*axis.positive, *axis.negative):
                self.index(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The K names in order."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def size(self) -> int:
        """K, the number of dimensions."""
        return len(self.dimensions)

    def __len__(self) -> int:
        return len(self.dimensions)

    def index(self, name: str) -> int:
        """Position of a dimension; case, spaces and underscores do not matter. Raises
        UnknownValueError.
        """
        wanted = normalise_name(name)
        for position, dimension in enumerate(self.dimensions):
            if wanted in (dimension.name, normalise_name(dimension.title)):
                return position
        raise UnknownValueError(name, self.names, self.name)

    def vector(self, values: Mapping[str, float], limit: float = 1.0) -> torch.Tensor:
        """The vector [K] float32 of a mapping; absent names are 0.

        Raises UnknownValueError for a name that is not in the space, ValueError for a repeated
        name, for anything that is not a finite number and for |value| > limit.
        """
        entries: dict[int, float] = {}
        for name, value in values.items():
            position = self.index(name)
            if position in entries:
                raise ValueError(f"value {self.names[position]!r} is given twice")
            entries[position] = _checked_number(name, value, limit)
        vector = torch.zeros(len(self))
        for position, number in entries.items():
            vector[position] = number
        return vector

    def matrix(
        self, rows: Sequence[Mapping[str, float] | None], limit: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of many rows: (values [B, K] float32, known [B] bool). A None row is unknown and
        zero.
        """
        values = torch.zeros(len(rows), len(self))
        known = torch.zeros(len(rows), dtype=torch.bool)
        for position, row in enumerate(rows):
            if row is not None:
                values[position] = self.vector(row, limit)
                known[position] = True
        return values, known

    def as_dict(
        self, vector: torch.Tensor, digits: int = 3, drop_zero: bool = True
    ) -> dict[str, float]:
        """A vector [K] by name, rounded; entries that round to zero are left out unless
        `drop_zero` is False.
        """
        if vector.shape != (len(self),):
            raise ValueError(
                f"a vector of space {self.name!r} has shape ({len(self)},), "
                f"got {tuple(vector.shape)}"
            )
        rounded = [round(float(entry), digits) + 0.0 for entry in vector]
        return {
            name: entry
            for name, entry in zip(self.names, rounded, strict=True)
            if entry or not drop_zero
        }

    def parse(self, text: str, field: str = "target", limit: float = 1.0) -> torch.Tensor:
        """The vector [K] of "security=1,power=-0.5". `field` is how errors call it, an option name
        for instance.
        """
        entries: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if not equals or not name or not number:
                raise ValueError(
                    f"{field}: expected NAME=NUMBER pairs joined by commas, got {part!r}"
                )
            try:
                value = float(number)
            except ValueError:
                raise ValueError(f"{field}: {number!r} of {name!r} is not a number") from None
            if self.names[_located(self, name, field)] in entries:
                raise ValueError(f"{field}: value {name!r} is given twice")
            entries[self.names[self.index(name)]] = value
        if not entries:
            raise ValueError(f"{field}: is empty; give NAME=NUMBER pairs such as {self.names[0]}=1")
        try:
            return self.vector(entries, limit)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None

    def to_dict(self) -> dict:
        """Plain data for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping) -> ValueSpace:
        """A space from plain data. Raises ValueError that names the missing or unknown key."""
        _check_keys(data, "value space", required=("name", "dimensions"), optional=("axes",))
        dimensions = [
            _read_item(Dimension, item, "dimension", ("name", "title", "definition"), ("keywords",))
            for item in data["dimensions"]
        ]
        axis_keys = ("name", "positive", "negative", "positive_name", "negative_name")
        axes = [_read_item(Axis, item, "axis", axis_keys, ()) for item in data.get("axes", ())]
        return cls(name=data["name"], dimensions=tuple(dimensions), axes=tuple(axes))

    def save(self, path: str | Path) -> None:
        """Write the space as JSON."""
        Path(path).write_text(
            json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def from_file(cls, path: str | Path) -> ValueSpace:
        """Read a space from a JSON file. Raises ValueError that names the file and what is wrong
        in it.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: no such value space file") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@lru_cache(maxsize=4096)
def normalise_name(name: str) -> str:
    return "-".join(re.split(r"[\s_:-]+", name.strip().lower()))


def _located(space: ValueSpace, name: str, field: str) -> int:
    try:
        return space.index(name)
    except UnknownValueError as error:
        error.args = (f"{field}: {error}",)
        raise


def _checked_number(name: str, value: object, limit: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"value {name!r} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"value {name!r} must be finite, got {value}")
    if abs(value) > limit:
        raise ValueError(f"value {name!r} must be in [{-limit:g}, {limit:g}], got {value:g}")
    return float(value)


def _check_keys(data: object, what: str, required: Sequence[str], optional: Sequence[str]) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a JSON object, got {type(data).__name__}")
    missing = [key for key in required if key not in data]
    if missing:
        raise ValueError(f"{what} lacks the key {missing[0]!r}")
    unknown = [key for key in data if key not in required and key not in optional]
    if unknown:
        raise ValueError(
            f"{what} has the unknown key {unknown[0]!r}; known: {', '.join((*required, *optional))}"
        )


def _read_item(
    kind: type, item: object, what: str, required: Sequence[str], optional: Sequence[str]
):
    _check_keys(item, what, required, optional)
    assert isinstance(item, Mapping)
    fields = {}
    for key, value in item.items():
        wants_list = key in ("keywords", "positive", "negative")
        if wants_list and not (
            isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value)
        ):
            raise ValueError(f"{what} {item['name']!r}: {key!r} must be a list of strings")
        if not wants_list and not isinstance(value, str):
            raise ValueError(f"{what}: {key!r} must be a string, got {value!r}")
        fields[key] = tuple(value) if wants_list else value
    return kind(**fields)
