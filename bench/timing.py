"""Seconds per call, with all contenders taken in turns.

A shared machine is faster in one second than in the next, so contenders run A B C A B C ...: a
ratio is taken within each round and its median over rounds holds where single times do not.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Run = Callable[[], Any]

WARMUPS = 3
SLOW = 0.3
"""Seconds of a call that one more run is warm-up enough for: it has run in the gate before."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What a CPU's seconds are: those that pass, or those that this process computes for, of all its
threads together. The second leaves out the turns of other programs on a busy machine; where
threads wait for each other it counts the waiting."""

SLICE = 5e-3
"""A contender's turn is repeated until it lasts about this many seconds (on a CPU), so that little
of it is spent on caches that the one before has filled: code of torch that two contenders share
would otherwise be there for one and not for the other."""


def rounds(
    runs: dict[str, Run],
    device: str,
    seconds: float,
    *,
    least: int,
    most: int,
    flush: bool = True,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one entry per round.

    Rounds go on until `seconds` per contender are spent, but at least `least` and at most `most`.
    On a GPU each call is timed by events after the L2 cache was overwritten (`flush`), on a CPU by
    one of CLOCKS.
    """
    timer = _OnGpu(flush) if device == "cuda" else _OnCpu(CLOCKS[clock])
    repeats = {name: timer.warm_up(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    stop = time.perf_counter() + seconds * len(runs)
    count = 0
    with _no_collection():
        while count < least or (count < most and time.perf_counter() < stop):
            for name, run in runs.items():
                times[name].append(timer.seconds(run, repeats[name]))
            count += 1
    return times


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector would land in one contender's turn."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _OnCpu:
    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now

    def warm_up(self, run: Run) -> int:
        """Run a few times, a slow one once; how often to repeat it in a turn."""
        for _ in range(WARMUPS):
            start = time.perf_counter()
            run()
            took = time.perf_counter() - start
            if took > SLOW:
                break
        return int(min(max(SLICE / max(took, 1e-9), 1), 1000))

    def seconds(self, run: Run, repeats: int) -> float:
        start = self.now()
        for _ in range(repeats):
            run()
        return (self.now() - start) / repeats


class _OnGpu:
    """Events around one call. The flush keeps the device busy while the call is being queued, so
    that the host's part is hidden unless it is longer than that."""

    def __init__(self, flush: bool) -> None:
        size = 2 * torch.cuda.get_device_properties("cuda").L2_cache_size
        self.filler = torch.empty(max(size, 2**28) if flush else 0, dtype=torch.int8, device="cuda")

    def warm_up(self, run: Run) -> int:
        for _ in range(WARMUPS):
            self.seconds(run, 1)
        return 1

    def seconds(self, run: Run, repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.filler.zero_()
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats


def capture(runs: list[Run]) -> Run:
    """One CUDA graph of all the calls, after each of them has run once; a replay runs them all."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [run() for run in runs]

    def replay(keep: Any = results) -> None:
        graph.replay()

    return replay
