"""Where rewrites should go, by hand: from stand-ins for the frozen models and from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from visa_core.training.targets import predicted_targets, recorded_shifts, recorded_targets
from visa_core.types import RewriteExample
from visa_core.values import SCHWARTZ


def vectors(*rows: dict[str, float], limit: float = 1.0) -> torch.Tensor:
    return torch.stack([SCHWARTZ.vector(row, limit=limit) for row in rows])


class Reads:
    """Answers from a table, by the last text it is given; keeps what it was asked."""

    def __init__(self, table: dict[str, dict[str, float]], limit: float = 1.0) -> None:
        self.table, self.limit = table, limit
        self.asked: list[Sequence[str]] = []

    def predict(self, *columns: list[str]) -> torch.Tensor:
        self.asked = list(columns)
        return vectors(*(self.table[text] for text in columns[-1]), limit=self.limit)


def example(response: str, **fields: object) -> RewriteExample:
    return RewriteExample(
        **{"query": f"q {response}", "response": response, "instruction": f"i {response}"} | fields
    )


EXAMPLES = [
    example("a", shift={"security": 1.0}, id="one"),
    example("b", shift={"power": -2.0, "security": 0.5}, id="two"),
]
DETECTOR = Reads({"a": {"security": 0.75, "hedonism": -0.25}, "b": {"power": 0.5}})
TRANSLATOR = Reads(
    {"a": {"security": 1.5, "hedonism": -0.5}, "b": {"power": -2.0, "tradition": 0.125}}, limit=2.0
)


def test_targets_are_detected_values_plus_translated_shift_clipped() -> None:
    targets = predicted_targets(EXAMPLES, DETECTOR, TRANSLATOR, SCHWARTZ)
    expected = vectors({"security": 1.0, "hedonism": -0.75}, {"power": -1.0, "tradition": 0.125})
    assert targets.equal(expected)
    assert DETECTOR.asked == [["q a", "q b"], ["a", "b"]]
    assert TRANSLATOR.asked == [["i a", "i b"], ["q a", "q b"], ["a", "b"]]


def test_without_a_translator_the_records_say_the_shift() -> None:
    targets = predicted_targets(EXAMPLES, DETECTOR, None, SCHWARTZ)
    expected = vectors({"security": 1.0, "hedonism": -0.25}, {"power": -1.0, "security": 0.5})
    assert targets.equal(expected)


def test_recorded_targets_come_first() -> None:
    records = [
        example("a", target={"power": 0.5}, values={"power": 1.0}, shift={"power": 1.0}),
        example("b", values={"power": 1.0, "hedonism": -0.5}, shift={"power": -1.5}),
        example("c", values={}, shift={}),
        example("d", target={}),
    ]
    expected = vectors({"power": 0.5}, {"power": -0.5, "hedonism": -0.5}, {}, {})
    assert recorded_targets(records, SCHWARTZ).equal(expected)


LACKING = [example("a", id="fine", shift={}), example("b", id="bad"), example("c", id="worse")]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: recorded_shifts(LACKING, SCHWARTZ), "2 of 3 records have no shift, .* 'bad', 'wo"),
        (
            lambda: recorded_targets(LACKING, SCHWARTZ),
            r"3 of 3 records have no target \(nor values and shift\), the first: 'fine'",
        ),
        (
            lambda: predicted_targets(
                [example("a"), example("b", instruction=" ", id="mute")],
                DETECTOR,
                TRANSLATOR,
                SCHWARTZ,
            ),
            "1 of 2 records have no instruction, the first: 'mute'",
        ),
        (
            lambda: predicted_targets(LACKING[1:], Reads({"b": {}, "c": {}}), None, SCHWARTZ),
            "2 of 2 records have no shift",
        ),
    ],
)
def test_records_that_lack_a_part_are_named(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask()
