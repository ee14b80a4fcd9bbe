"""Rewriting tasks for SFT, GRPO and evaluation: jsonl:PATH, embedded[:ROWS[,SEED]] and fulcra:PATH.

FULCRA holds dialogues with their values but no instructions and no rewrites. Each dialogue becomes
a task by a seeded shift with
an instruction in words; for SFT it becomes a reconstruction (target: its own values, reference:
itself), a warm-up that
teaches what the target's notation means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visa_core.data.schema import DataError, read_jsonl, report_rejected
from visa_core.data.sources import load_dialogues, parse_spec, rows_and_seed
from visa_core.training.run import step_seed
from visa_core.types import Dialogue, RewriteExample
from visa_core.values import SCHWARTZ, ValueSpace

EMBEDDED_TASKS = 6000

_MORE = {2.0: "far more", 1.5: "far more", 1.0: "more", 0.5: "slightly more"}


def load_rewriting(
    specs: Sequence[str], space: ValueSpace = SCHWARTZ, *, references: bool = False, seed: int = 0
) -> list[RewriteExample]:
    """Rewriting tasks of all specifications in order; with `references` each has a target and a
    reference.

    Raises DataError for a kind that holds no such tasks, an unreadable file, or when nothing valid
    is left.
    """
    everything: list[RewriteExample] = []
    for text in specs:
        spec = parse_spec(text)
        if spec.kind == "jsonl":
            everything += _from_jsonl(spec.arguments[0], space, references)
        elif spec.kind == "embedded":
            from visa_core.data import embedded

            rows, its_seed = rows_and_seed(spec, EMBEDDED_TASKS)
            noise = embedded.ReferenceNoise() if references else None
            everything += embedded.rewrites(rows, its_seed, noise)
        elif spec.kind == "fulcra":
            dialogues = load_dialogues([text], space)
            everything += (
                reconstructions(dialogues) if references else with_shifts(dialogues, space, seed)
            )
        else:
            raise DataError(
                f"--data {text!r} holds no rewriting tasks; use jsonl:PATH, embedded or fulcra:PATH"
            )
    if not everything:
        raise DataError("no data: give --data at least once")
    return everything


def _from_jsonl(path: str, space: ValueSpace, references: bool) -> list[RewriteExample]:
    needed = ("query", "response", "reference") if references else ("query", "response")
    rows, rejected = read_jsonl(path, RewriteExample, required=needed, space=space)
    report_rejected(rejected, len(rows) + len(rejected))
    if not rows:
        raise DataError(f"{path} has no usable record ({len(rejected)} set aside)")
    return rows


def reconstructions(dialogues: Sequence[Dialogue]) -> list[RewriteExample]:
    """Each dialogue as its own rewrite towards its own values."""
    return [
        RewriteExample(
            query=d.query,
            response=d.response,
            instruction="",
            values=d.values,
            shift={},
            target=d.values,
            reference=d.response,
            id=d.id,
        )
        for d in dialogues
        if d.values is not None
    ]


def with_shifts(
    dialogues: Sequence[Dialogue], space: ValueSpace, seed: int = 0
) -> list[RewriteExample]:
    """Each dialogue with a shift of one or two values and the instruction that asks for it; a pure
    function of the seed.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, 0))
    records = []
    for d in dialogues:
        count = int(torch.randint(1, 3, (1,), generator=generator))
        chosen = torch.randperm(space.size, generator=generator)[:count].tolist()
        sizes = torch.randint(1, 4, (count,), generator=generator).tolist()
        shift = {}
        for k, size in zip(chosen, sizes, strict=True):
            now = (d.values or {}).get(space.names[k], 0.0)
            sign = -1.0 if now > 0 else 1.0
            shift[space.names[k]] = sign * size / 2
        records.append(
            RewriteExample(
                query=d.query,
                response=d.response,
                instruction=describe_shift(shift, space),
                values=d.values,
                shift=shift,
                id=d.id,
            )
        )
    return records


def describe_shift(shift: dict[str, float], space: ValueSpace) -> str:
    """A shift in words: "make it more focused on security and far less focused on power"."""
    parts = []
    for name, size in shift.items():
        amount = _MORE[min(2.0, max(0.5, round(abs(size) * 2) / 2))]
        if size < 0:
            amount = amount.replace("more", "less")
        parts.append(f"{amount} focused on {space.dimensions[space.index(name)].title.lower()}")
    return "make it " + " and ".join(parts)
