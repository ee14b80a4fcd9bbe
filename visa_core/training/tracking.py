"""Where a run's figures go beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

ID = "track.txt"
"""File with the run's name at the tracker, so that a resumed run goes on there."""


class Board(Protocol):
    """Takes the figures of steps."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of one step."""
        ...

    def close(self) -> None:
        """Everything is written."""
        ...


class TensorBoard:
    """Event files in the folder `tensorboard` of the run; names are label/figure."""

    def __init__(self, out: Path, label: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "--tensorboard needs the package tensorboard: pip install 'visa-core[tracking]'"
            ) from error
        self.label = label
        self.writer: Any = SummaryWriter(str(out / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Board."""
        for key, value in values.items():
            self.writer.add_scalar(f"{self.label}/{key}", value, step)

    def close(self) -> None:
        """See Board."""
        self.writer.close()


class Tracker:
    """A run at wandb or trackio, whose calls are alike: init, log, finish."""

    def __init__(
        self, kind: str, out: Path, label: str, project: str, config: Mapping[str, Any]
    ) -> None:
        self.api = import_tracker(kind)
        self.label = label
        name = _name(out)
        options: dict[str, Any] = {"dir": str(out), "id": name} if kind == "wandb" else {}
        self.api.init(
            project=project,
            name=out.name if kind == "wandb" else name,
            config=dict(config),
            resume="allow",
            **options,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Board."""
        self.api.log({f"{self.label}/{key}": value for key, value in values.items()}, step=step)

    def close(self) -> None:
        """See Board."""
        self.api.finish()


def import_tracker(kind: str) -> Any:
    """The tracker's package; a ValueError that says how to have it where it is missing."""
    try:
        return importlib.import_module(kind)
    except ImportError as error:
        raise ValueError(
            f"--track {kind} needs the package {kind}: pip install {kind}, or 'visa-core[tracking]'"
        ) from error


def open_boards(
    out: Path,
    label: str,
    *,
    tensorboard: bool,
    track: str,
    project: str,
    config: Mapping[str, Any],
) -> list[Board]:
    """The boards that are asked for. Raises ValueError for one whose package is missing."""
    boards: list[Board] = [TensorBoard(out, label)] if tensorboard else []
    if track != "none":
        boards.append(Tracker(track, out, label, project, config))
    return boards


def _name(out: Path) -> str:
    """The run's own name, made once and kept in its folder."""
    path = out / ID
    if not path.is_file():
        path.write_text(f"{out.name}-{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
