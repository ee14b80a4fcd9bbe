"""`visa detect`: the values of the responses in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visa_core.commands.options import DetectOptions
from visa_core.commands.rows import through
from visa_core.data.schema import check_text
from visa_core.models.detector import Detector
from visa_core.pipeline import SYSTEM_FILE, read_system, refuse_non_finite
from visa_core.training.supervised import pick_device


def run(options: DetectOptions) -> int:
    """Exit status: 0, or 1 when no row could be read."""
    detector = load_detector(options.model, options.device)

    def process(rows: Sequence[tuple[str, str]]) -> list[dict[str, Any] | ValueError]:
        values = detector.predict(
            [query for query, _ in rows], [response for _, response in rows], options.batch_size
        )
        refuse_non_finite("detector", values)
        return [{"values": detector.space.as_dict(v, digits=4, drop_zero=False)} for v in values]

    counts = through(options.input, options.output, read, process, options.batch_size, "detect")
    print(f"{counts.written} rows written to {options.output}, {counts.rejected} set aside")
    return 0 if counts.written or not counts.rejected else 1


def load_detector(folder: Path, device: str) -> Detector:
    """The detector of a system folder, or of its own folder."""
    where = pick_device(device)
    if (folder / SYSTEM_FILE).is_file():
        folder = read_system(folder)["detector"]
    return Detector.from_pretrained(folder).to(where)


def read(data: dict[str, Any]) -> tuple[str, str]:
    """Query and response of a row. Raises ValueError naming the field that is missing or empty."""
    for name in ("query", "response"):
        if data.get(name) is None:
            raise ValueError(f"field {name!r} is missing")
    return check_text("query", data["query"]), check_text("response", data["response"])
