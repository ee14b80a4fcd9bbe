"""Answers of raters: what is valid, when one is complete, and where they are kept."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visa_core.evaluation.human.sheets import ANSWERS, SHEET, read_json
from visa_core.evaluation.journal import Journal, read_journal

SIDES = ("a", "b", "alike")
RATER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")

Answer = dict[str, Any]


def check_rater(name: str) -> str:
    """The name, which is a file's name too. Raises ValueError for any other kind."""
    if not RATER.fullmatch(name):
        raise ValueError(
            "a rater's name has 1 to 40 letters, digits, hyphens and underscores, and begins with "
            "a letter or digit"
        )
    return name


def check_answer(item: Mapping[str, Any], answer: object, sheet: Mapping[str, Any]) -> Answer:
    """The answer, perhaps of a part only. Raises ValueError that says what is wrong."""
    if not isinstance(answer, dict):
        raise ValueError("an answer must be an object")
    if item["task"] == "comparison":
        for name, side in answer.items():
            if name not in sheet["criteria"] or side not in SIDES:
                raise ValueError(f"{name!r}: {side!r} is no answer to a comparison")
        return answer
    if set(answer) - {"neutral", "values"}:
        raise ValueError("an identification has the fields neutral and values")
    neutral, values = answer.get("neutral", False), answer.get("values", {})
    if not isinstance(neutral, bool) or not isinstance(values, dict):
        raise ValueError("neutral must be true or false, and values an object")
    known = {value["name"] for value in sheet["values"]}
    for name, sign in values.items():
        if name not in known or isinstance(sign, bool) or sign not in (-1, 1):
            raise ValueError(f"{name!r}: {sign!r} is neither 1 (promoted) nor -1 (opposed)")
    if len(values) > sheet["most_values"] or (neutral and values):
        raise ValueError(f"at most {sheet['most_values']} values, and none when neutral")
    return {"neutral": neutral, "values": values}


def is_complete(item: Mapping[str, Any], answer: Answer, sheet: Mapping[str, Any]) -> bool:
    """Whether nothing is left to say about the item."""
    if item["task"] == "comparison":
        return set(answer) == set(sheet["criteria"])
    return bool(answer.get("neutral") or answer.get("values"))


class AnswerBook:
    """Answers to one sheet, a file a rater, each on disk before it is confirmed. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sheet = read_json(folder / SHEET)
        self.items = {item["id"]: item for item in self.sheet["items"]}
        self._journals: dict[str, Journal] = {}
        self._lock = threading.Lock()

    def order(self, rater: str) -> list[str]:
        """Ids in this rater's own order, task by task, so that fatigue does not hit the same
        items.
        """
        drawn = random.Random(check_rater(rater))
        ids = list(self.items)
        drawn.shuffle(ids)
        return sorted(ids, key=lambda item: self.items[item]["task"])

    def answers(self, rater: str) -> dict[str, Answer]:
        """What the rater has said so far, by item."""
        with self._lock:
            records = self._journal(rater).records
            return {item: record["answer"] for item, record in records.items()}

    def put(self, rater: str, item: str, answer: object) -> bool:
        """Keep an answer; whether it is complete. Raises ValueError for one that is not valid."""
        if item not in self.items:
            raise ValueError(f"the sheet has no item {item!r}")
        checked = check_answer(self.items[item], answer, self.sheet)
        with self._lock:
            self._journal(rater).put(item, {"answer": checked, "time": round(time.time(), 3)})
        return is_complete(self.items[item], checked, self.sheet)

    def _journal(self, rater: str) -> Journal:
        name = check_rater(rater)
        if name not in self._journals:
            self._journals[name] = Journal(self.folder / ANSWERS / f"{name}.jsonl")
        return self._journals[name]

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            for journal in self._journals.values():
                journal.close()


def read_answers(folder: Path, sheet: Mapping[str, Any]) -> dict[str, dict[str, Answer]]:
    """Rater -> item -> answer, of all files of a sheet's folder; the page may be open meanwhile.

    Raises CheckpointError or ValueError naming the file that does not belong to the sheet.
    """
    items = {item["id"]: item for item in sheet["items"]}
    found: dict[str, dict[str, Answer]] = {}
    for path in sorted((folder / ANSWERS).glob("*.jsonl")):
        records, _ = read_journal(path)
        try:
            if unknown := set(records) - set(items):
                raise ValueError(f"the sheet has no item {sorted(unknown)[0]!r}")
            found[path.stem] = {
                item: check_answer(items[item], record.get("answer"), sheet)
                for item, record in records.items()
            }
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return found
