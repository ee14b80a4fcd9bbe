"""A file in Community Alignment's schema, of any size: `python -m bench.alignment_file OUT.csv`.

Texts are sentences of real dialogues (hh_helpful, where it is) put together anew, or words where
it is not. Every oddity of the real file occurs at a set rate: conversations of one to four turns,
gaps, candidates that repeat another or the chosen one, stray end tokens, missing feedback, five
languages, and rows of several annotators with the same prompt and candidates.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TURNS = ("first", "second", "third", "fourth")
LETTERS = "abcd"
LANGUAGES = ("en", "fr", "it", "pt", "hi")
STRAY = "<|end_of_text|>"
PERSON = ("age", "gender", "education_level", "political", "ethnicity", "country")
COLUMNS = (
    "conversation_id",
    "assigned_lang",
    "annotator_id",
    "wave",
    *(
        f"{turn}_turn_{part}"
        for turn in TURNS
        for part in (
            "prompt",
            *(f"response_{letter}" for letter in LETTERS),
            "preferred_response",
            "feedback",
        )
    ),
    *(f"annotator_{part}" for part in PERSON),
    "is_pregenerated_first_prompt",
    "in_balanced_subset",
    "in_balanced_subset_10",
)
WORDS = "the of and to a in you can it is that with for on your safe fun new rule help time".split()
REASONS = (
    "It is {} and the other answers are not",
    "I prefer it because it is {}, although it is long",
    "more {} than the others",
    "it cares about people and is {}",
)
QUALITIES = (
    "safer kinder traditional exciting honest polite ambitious creative fair detailed".split()
)


@dataclass
class Rates:
    """How often each oddity occurs, a turn or a row."""

    stray: float = 0.05
    repeated: float = 0.05
    equal_to_chosen: float = 0.03
    no_feedback: float = 0.3
    gap: float = 0.02
    shared: float = 0.2
    further_turn: float = 0.5
    english: float = 0.7


@dataclass
class Made:
    """What a file holds, counted as it was written rather than read back."""

    counts: Counter[str] = field(default_factory=Counter)

    @property
    def comparisons(self) -> int:
        """Comparisons that a reader should find."""
        return self.counts["comparisons"]


def real_sentences(data: Path | None = None) -> list[str]:
    """Sentences of the responses in hh_helpful/test.jsonl; none where the file is not."""
    folder = data or Path(os.environ.get("VISA_DATA") or "../shared/data")
    path = folder / "hh_helpful" / "test.jsonl"
    if not path.is_file():
        return []
    texts: dict[str, None] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            for turn in re.split(r"\n\n(?:Human|Assistant):", json.loads(line)["chosen"]):
                for sentence in re.split(r"(?<=[.!?])\s+", turn):
                    if 20 <= len(sentence) <= 300:
                        texts[sentence.strip()] = None
    return list(texts)


class Writer:
    """Rows of conversations, seeded."""

    def __init__(self, sentences: Sequence[str], seed: int = 0, rates: Rates | None = None) -> None:
        self.random = random.Random(seed)
        self.sentences = sentences
        self.rates = rates or Rates()
        self.made = Made()
        self.shared: tuple[str, dict[str, str]] | None = None

    def rows(self, comparisons: int) -> Iterator[dict[str, str]]:
        """Rows until they hold at least this many comparisons."""
        number = 0
        while self.made.comparisons < comparisons:
            number += 1
            yield self.row(number)

    def row(self, number: int) -> dict[str, str]:
        """One conversation."""
        rates, chance = self.rates, self.random.random
        row = dict.fromkeys(COLUMNS, "")
        row |= {f"annotator_{part}": "not told" for part in PERSON}
        row["conversation_id"] = str(10_000 + number)
        row["assigned_lang"] = (
            "en" if chance() < rates.english else self.random.choice(LANGUAGES[1:])
        )
        row["annotator_id"] = str(self.random.randrange(3000))
        row["wave"] = str(1 + number % 2)
        row["in_balanced_subset"] = str(chance() < 0.5)
        self.made.counts["rows"] += 1
        broken = False
        for place, turn in enumerate(TURNS):
            if place and chance() >= rates.further_turn:
                break
            if not broken and place and chance() < rates.gap:
                broken = True
                self.made.counts["gaps"] += 1
                continue
            row |= self.turn(turn, first=place == 0, counted=not broken)
        return row

    def turn(self, turn: str, first: bool, counted: bool) -> dict[str, str]:
        """Cells of one turn."""
        rates, chance = self.rates, self.random.random
        if first and self.shared is not None and chance() < rates.shared:
            prompt, texts = self.shared
            self.made.counts["rows with another's candidates"] += 1
        else:
            prompt, texts = self.text(1, 2), {letter: self.text(2, 8) for letter in LETTERS}
        if first:
            self.shared = prompt, texts
        chosen = self.random.choice(LETTERS)
        others = [letter for letter in LETTERS if letter != chosen]
        texts = dict(texts)
        if chance() < rates.repeated:
            texts[others[1]] = texts[others[0]]
        if chance() < rates.equal_to_chosen:
            texts[others[2]] = texts[chosen]
        if counted:
            different = {texts[letter] for letter in others} - {texts[chosen]}
            self.made.counts["comparisons"] += len(different)
        cells = {f"{turn}_turn_response_{letter}": text for letter, text in texts.items()}
        for name in cells:
            cells[name] += STRAY if chance() < rates.stray else ""
        cells[f"{turn}_turn_prompt"] = prompt
        cells[f"{turn}_turn_preferred_response"] = f"response_{chosen}"
        if chance() >= rates.no_feedback:
            reason = self.random.choice(REASONS).format(self.random.choice(QUALITIES))
            cells[f"{turn}_turn_feedback"] = reason
        return cells

    def text(self, least: int, most: int) -> str:
        """A text of so many sentences."""
        count = self.random.randint(least, most)
        if self.sentences:
            return " ".join(self.random.choices(self.sentences, k=count))
        return " ".join(" ".join(self.random.choices(WORDS, k=16)) + "." for _ in range(count))


def write_alignment(
    path: Path,
    comparisons: int,
    sentences: Sequence[str] = (),
    seed: int = 0,
    rates: Rates | None = None,
) -> Made:
    """Write a CSV file with at least this many comparisons; returns what it holds."""
    writer = Writer(sentences, seed, rates)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in writer.rows(comparisons):
            table.writerow(row)
    return writer.made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--comparisons", type=int, default=233_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    made = write_alignment(options.out, options.comparisons, real_sentences(), options.seed)
    print(json.dumps(dict(made.counts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
