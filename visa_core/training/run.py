"""A training run on disk: steps, progress, metrics, checkpoints, resume, Ctrl-C.

The randomness of a step is a pure function of (seed, step), and trainers derive the order of their
data from (seed, epoch).
So weights and optimizer state are all that a checkpoint needs for a resumed run to repeat the
uninterrupted one bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from visa_core.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    recover_folder,
    save_checkpoint,
    write_file,
)
from visa_core.training.distributed import World
from visa_core.training.run_settings import defaults_of, refuse_other_settings
from visa_core.training.tracking import open_boards


class Stateful(Protocol):
    """What a run saves and restores: modules, optimizers, schedulers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class RunFinished(CheckpointError):
    """--resume of a run that has its result: there is nothing left to do."""


class RunSettings(Protocol):
    """What the settings of every stage have in common; they are dataclasses."""

    out: Path
    seed: int
    save_every: int
    resume: bool
    tensorboard: bool


class TrainingStopped(SystemExit):
    """Ctrl-C or SIGTERM: the run was saved and can be resumed. Exit status 130."""


def step_seed(seed: int, step: int) -> int:
    """Seed of one step, a fixed mix of (seed, step) below 2^63."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**63


def epoch_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """Permutation of n rows, [n] int64, a pure function of (seed, epoch)."""
    generator = torch.Generator().manual_seed(step_seed(seed, -1 - epoch))
    return torch.randperm(n, generator=generator)


def batch_rows(n: int, batch: int, seed: int, step: int) -> torch.Tensor:
    """Rows of the batch at `step` (0-based) when epochs of n rows follow each other without a gap,
    [batch] int64.
    """
    if n == 0:
        raise ValueError("the training set is empty: nothing is left after reading and filtering")
    first = step * batch
    rows = []
    while len(rows) < batch:
        epoch, offset = divmod(first + len(rows), n)
        order = epoch_order(n, seed, epoch)
        rows.extend(order[offset : offset + batch - len(rows)].tolist())
    return torch.tensor(rows)


class Run:
    """One training run in `out_dir`; iterate `steps()` and call `log(step, metrics)` in the loop's
    body.

    state: objects with state_dict/load_state_dict, all that the run's future depends on.
    config: kept in `out_dir/run.json`; resuming under another config is refused.
    defaults: what entries of config have unless told otherwise: a run that was begun before there
    was such an entry goes on where it has its default.
    world: the ranks that share the run. Rank 0 writes the files and shows the progress; the others
    take part where the state is gathered and where the run stops.
    """

    def __init__(
        self,
        out_dir: Path,
        total_steps: int,
        state: dict[str, Stateful],
        *,
        seed: int = 0,
        save_every: int = 200,
        resume: bool = False,
        tensorboard: bool = False,
        track: str = "none",
        track_project: str = "visa",
        label: str = "train",
        config: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
        world: World | None = None,
    ) -> None:
        self.world = world or World(torch.device("cpu"))
        self.out_dir = Path(out_dir)
        self.total_steps = total_steps
        self.state = state
        self.seed = seed
        self.save_every = save_every
        self.label = label
        self._stop_signal: int | None = None
        self._postfix: dict[str, str] = {}
        self.metrics_path = self.out_dir / "metrics.jsonl"
        if self.world.is_main:
            self._prepare_folder(config or {}, defaults or {}, resume)
        self.world.wait()
        self.first_step = self._restore() if resume else 0
        self._boards = open_boards(
            self.out_dir,
            label,
            tensorboard=tensorboard and self.world.is_main,
            track=track if self.world.is_main else "none",
            project=track_project,
            config=json.loads(json.dumps(config or {}, default=str)),
        )

    def _prepare_folder(
        self, config: dict[str, Any], defaults: dict[str, Any], resume: bool
    ) -> None:
        record = json.loads(
            json.dumps({"config": config, "total_steps": self.total_steps}, default=str)
        )
        path = self.out_dir / "run.json"
        try:
            recover_folder(self.out_dir)
            self.out_dir.mkdir(parents=True, exist_ok=True)
            if resume and path.exists():
                old = json.loads(path.read_text())
                finished = old.pop("finished", False)
                refuse_other_settings(path, old, record, {"config": defaults})
                if finished:
                    raise RunFinished(
                        f"{self.out_dir} holds the result of this run: nothing is left to resume"
                    )
                return
            if not resume and list_checkpoints(self.out_dir):
                raise CheckpointError(
                    f"{self.out_dir} holds an unfinished run: continue it with --resume, or choose "
                    "another --out, or delete its folder 'checkpoints'"
                )
            self.metrics_path.write_text("")
            write_file(path, json.dumps(record, indent=1))
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run folder {self.out_dir}: {error}. Choose a writable folder "
                "with --out."
            ) from error

    def _restore(self) -> int:
        checkpoints = list_checkpoints(self.out_dir)
        step, state = load_checkpoint(checkpoints[-1]) if checkpoints else (0, {})
        if state:
            for name, holder in self.state.items():
                holder.load_state_dict(state[name])
        if self.world.is_main:
            _keep_metrics_before(self.metrics_path, step)
            samples = self.out_dir / "samples.jsonl"
            if samples.exists():
                _keep_metrics_before(samples, step)
        self.world.wait()
        return step

    def steps(self) -> Iterator[int]:
        """Yield the steps that remain, 0-based, each with its own random state; saves as due."""
        previous = self._catch_signals()
        bar = tqdm(
            total=self.total_steps,
            initial=self.first_step,
            desc=self.label,
            disable=None if self.world.is_main else True,
            file=sys.stderr,
            dynamic_ncols=True,
        )
        try:
            for step in range(self.first_step, self.total_steps):
                torch.manual_seed(step_seed(self.seed, step))
                yield step
                bar.set_postfix(self._postfix, refresh=False)
                bar.update()
                self._save_if_due(step + 1)
        finally:
            bar.close()
            self._release_signals(previous)
            for board in self._boards:
                board.close()

    def _save_if_due(self, done: int) -> None:
        stopping = bool(self.world.most(int(self._stop_signal is not None)))
        if stopping or (done % self.save_every == 0 and done < self.total_steps):
            self.save(done)
        if stopping:
            if self.world.is_main:
                print(
                    f"stopped at step {done}; continue with --resume --out {self.out_dir}",
                    file=sys.stderr,
                )
            raise TrainingStopped(130)

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` steps; returns on all ranks when it is there."""
        state = {k: v.state_dict() for k, v in self.state.items()}
        if self.world.is_main:
            save_checkpoint(self.out_dir, done, state)
        self.world.wait()

    def log(self, step: int, metrics: dict[str, float | torch.Tensor]) -> None:
        """Append a line to metrics.jsonl (and to the boards) and show the first figures in the
        progress bar; on rank 0, the others do nothing.
        """
        if not self.world.is_main:
            return
        values = {key: float(value) for key, value in metrics.items()}
        row = {"step": step, **values, "time": round(time.time(), 3)}
        try:
            with self.metrics_path.open("a") as file:
                file.write(json.dumps(_finite_or_text(row)) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"cannot append to {self.metrics_path}: {error}. Free space, then continue with "
                "--resume."
            ) from error
        self._postfix = {key: f"{value:.3g}" for key, value in list(values.items())[:4]}
        for board in self._boards:
            board.log(step, values)

    def finish(self) -> None:
        """The stage's result is saved: its checkpoints are no longer needed."""
        for path in list_checkpoints(self.out_dir):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()

    def _catch_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}

    def _release_signals(self, previous: dict[int, Any]) -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._stop_signal is not None:
            raise KeyboardInterrupt
        self._stop_signal = number
        print("\nfinishing this step, then saving (again: stop at once)", file=sys.stderr)


def open_run(
    settings: RunSettings,
    total_steps: int,
    state: dict[str, Stateful],
    label: str,
    world: World | None = None,
) -> Run:
    """The run on disk that a stage's settings describe, shared by the ranks of `world`."""
    return Run(
        settings.out,
        total_steps,
        state,
        seed=settings.seed,
        save_every=settings.save_every,
        resume=settings.resume,
        tensorboard=settings.tensorboard,
        track=getattr(settings, "track", "none"),
        track_project=getattr(settings, "track_project", "visa"),
        label=label,
        config=asdict(settings),  # type: ignore[call-overload]
        defaults=defaults_of(settings),
        world=world,
    )


def _finite_or_text(row: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in row.items()
    }


def _keep_metrics_before(path: Path, step: int) -> None:
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(line + "\n" for line in kept))
    os.replace(scratch, path)
