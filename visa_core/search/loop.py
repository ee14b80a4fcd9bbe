"""The outer loop: ask for candidates, measure all of them, tell, save; resumed to the same path."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from visa_core.config.search import SearchConfig
from visa_core.rewards import NonFiniteRewardError
from visa_core.search.strategies import Strategy, make_strategy
from visa_core.training.checkpoint import CheckpointError, write_file

log = logging.getLogger("visa_core.search")

Measure = Callable[[np.ndarray, int], Sequence[dict[str, Any]]]
"""(candidates [K, D], iteration) -> a record a candidate, each with a "reward"; larger is
better."""

RULE = (
    "The published text names the search's parts but not its update equations; the rule used here "
    "is a reconstruction."
)


@dataclass
class History:
    """What a search asked, got, and where it stood after each iteration; plain data for JSON."""

    settings: dict[str, Any]
    iterations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def answer(self) -> np.ndarray:
        """The vector the search recommends, [D]."""
        return np.array(self.iterations[-1]["answer"])

    def records(self) -> list[dict[str, Any]]:
        """All candidates' records with their vector ("z") and iteration."""
        return [
            {"iteration": entry["iteration"], "z": z, **record}
            for entry in self.iterations
            for z, record in zip(entry["candidates"], entry["records"], strict=True)
        ]


def search(
    config: SearchConfig,
    dimensions: int,
    measure: Measure,
    state_file: Path,
    *,
    fingerprint: dict[str, Any] | None = None,
    label: str = "search",
) -> History:
    """Run the iterations that `state_file` does not hold yet; it is written after each.

    fingerprint: what the rewards depend on besides the search's own settings; a state of another
    one is refused. Raises NonFiniteRewardError for a reward that is not finite, ValueError for
    rewards that tell no candidate from another, CheckpointError for a state that does not fit or
    cannot be written; what was saved before stays.
    """
    settings = {"search": asdict(config), "dimensions": dimensions, "task": fingerprint or {}}
    settings = json.loads(json.dumps(settings, default=str))
    history = load(state_file, settings)
    strategy = make_strategy(config, dimensions)
    for entry in history.iterations:
        _replay(strategy, entry, state_file)
    if not history.iterations:
        save(state_file, history)  # a folder that cannot be written is told before any work
    bar = tqdm(
        total=config.iterations,
        initial=len(history.iterations),
        desc=label,
        disable=None,
        file=sys.stderr,
    )
    with bar:
        for iteration in range(len(history.iterations), config.iterations):
            history.iterations.append(step(strategy, measure, iteration))
            save(state_file, history)
            best = max(record["reward"] for record in history.iterations[-1]["records"])
            bar.set_postfix({"best": f"{best:.3f}"}, refresh=False)
            bar.update()
    return history


def step(strategy: Strategy, measure: Measure, iteration: int) -> dict[str, Any]:
    """One iteration: the record that the history keeps."""
    candidates_KD = strategy.ask()
    records = [dict(record) for record in measure(candidates_KD, iteration)]
    rewards_K = np.array([float(record["reward"]) for record in records])
    if len(rewards_K) != len(candidates_KD):
        raise ValueError(
            f"the reward gave {len(rewards_K)} records for {len(candidates_KD)} candidates"
        )
    _check_rewards(rewards_K, iteration)
    strategy.tell(candidates_KD, rewards_K)
    return {
        "iteration": iteration,
        "candidates": candidates_KD.tolist(),
        "records": records,
        "answer": strategy.answer().tolist(),
        "spread": strategy.spread().tolist(),
    }


def _check_rewards(rewards_K: np.ndarray, iteration: int) -> None:
    bad = np.flatnonzero(~np.isfinite(rewards_K))
    if len(bad):
        raise NonFiniteRewardError(
            f"iteration {iteration}: the reward of candidate {bad[0]} is {rewards_K[bad[0]]}; the "
            "model of its mock update may have diverged: lower --lr. Iterations before are saved"
        )
    if np.ptp(rewards_K) > 0:
        return
    told = f"iteration {iteration}: all {len(rewards_K)} candidates have the reward {rewards_K[0]}"
    if iteration == 0:
        raise ValueError(
            f"{told}: it does not tell value vectors apart, so there is nothing to search. Raise "
            "--sigma or the mock update's --steps, or choose another capability or probes"
        )
    log.warning("%s: the mean stays where it is", told)


def load(path: Path, settings: dict[str, Any]) -> History:
    """The history in a state file, empty where there is none. Raises CheckpointError for a file
    that cannot be read or has other settings.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        history = History(record["settings"], record["iterations"])
    except FileNotFoundError:
        return History(settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a readable state of a search: {error}. Delete it to start anew."
        ) from error
    if changed := _changed(history.settings, settings):
        raise CheckpointError(
            f"{path} holds a search with other settings ({changed}); restore them, choose another "
            "--out, or delete the file"
        )
    return history


def save(path: Path, history: History) -> None:
    """Write the state file aside and rename it."""
    record = {"rule": RULE, "settings": history.settings, "iterations": history.iterations}
    write_file(path, json.dumps(record) + "\n")


def _replay(strategy: Strategy, entry: dict[str, Any], path: Path) -> None:
    """Tell a saved iteration; numbers in JSON come back bit for bit."""
    asked = strategy.ask()
    saved = np.array(entry["candidates"])
    if asked.shape != saved.shape or not np.array_equal(asked, saved):
        raise CheckpointError(
            f"{path}: iteration {entry['iteration']} cannot be repeated: its candidates come from "
            "another version of this package or of numpy. Delete the file to start anew."
        )
    strategy.tell(saved, np.array([float(record["reward"]) for record in entry["records"]]))


def _changed(old: Any, new: Any, name: str = "") -> str:
    """The first setting that differs, as text; "" where none does. The number of iterations may
    grow.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key != "iterations" and (
                found := _changed(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
            ):
                return found
        return ""
    return "" if old == new else f"{name}: {old!r} -> {new!r}"
