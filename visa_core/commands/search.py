"""`visa search`: find the value target that pays best, and show what it buys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visa_core.config.search import AdaptiveConfig
from visa_core.search.report import ARMS


def summarise(record: dict[str, Any]) -> str:
    """The table for the terminal, from the report's record."""
    lines = [f"{'method':38}{'drift':>9}{'change':>9}{'capability':>12}{'change':>9}"]
    for arm, row in record["table"].items():
        cells = []
        for figure, width in (("drift", 9), ("capability", 12)):
            change = row[figure]["change_percent"]
            cells.append(f"{row[figure]['mean']:.4f}".rjust(width))
            cells.append(("-" if change is None else f"{change:+.1f} %").rjust(9))
        lines.append(f"{ARMS.get(arm, arm):38}" + "".join(cells))
    return "\n".join(lines)


def shown(config: AdaptiveConfig, path: Path) -> str:
    """What the command prints: the table and where everything lies."""
    record = json.loads(path.read_text(encoding="utf-8"))
    files = [path.with_name("search.md"), path, config.out / "rewritten.jsonl"]
    files += [path.with_name(name) for name in record["pictures"]]
    return "\n".join([summarise(record), *map(str, files)])
