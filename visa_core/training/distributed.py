"""The ranks of a run: who this process is, sums over all, this rank's share, a lost rank.

torchrun and the deepspeed launcher set RANK, WORLD_SIZE and LOCAL_RANK; without them there is one
rank, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

Number = TypeVar("Number", torch.Tensor, int)

TIMEOUT = timedelta(minutes=30)
"""A rank may wait this long for the others, whose completions can be much longer than its own."""

_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket",
    "remote process exited",
    "timed out waiting",
    "nccl",
)


class RankLost(OSError):
    """Another rank of the run died or cannot be reached; the message says how to go on."""


class World:
    """The ranks of a run, seen from one of them.

    Every method that talks to the others is collective: all ranks call it in the same order.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self.at_end: list[Callable[[], None]] = []

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and shows the progress."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, on the tensor's own device; the tensor itself where there is one."""
        if self.size == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def most(self, value: Number) -> Number:
        """Largest value over ranks, of a tensor (elementwise) or an int."""
        if self.size == 1:
            return value
        most = torch.as_tensor(value).detach().to(self.device, copy=True)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most.to(value.device) if isinstance(value, torch.Tensor) else int(most)

    def gather(self, part: torch.Tensor, own: range, n: int) -> torch.Tensor:
        """All ranks' rows [n, ...] on every rank; `part` holds this rank's, which are `own`."""
        if self.size == 1:
            return part
        whole = part.new_zeros(n, *part.shape[1:])
        whole[own.start : own.stop] = part
        return self.sum(whole)

    def share(self, n: int) -> range:
        """This rank's contiguous part of n prompts."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def average(
        self, metrics: Mapping[str, torch.Tensor | float], weight: float
    ) -> dict[str, torch.Tensor | float]:
        """Metrics over all ranks: the mean weighted by `weight` (rows or tokens of this rank),
        of "max_*" the largest, of "loss" the sum. All ranks name the same metrics.
        """
        if self.size == 1:
            return dict(metrics)
        largest = [key for key in metrics if key.startswith("max_")]
        others = [key for key in metrics if not key.startswith("max_")]
        parts = [float(metrics[key]) * (1.0 if key == "loss" else weight) for key in others]
        sums = self.sum(torch.tensor([*parts, weight], dtype=torch.float64)).tolist()
        total = sums.pop() or 1.0
        merged = {
            key: value / (1.0 if key == "loss" else total)
            for key, value in zip(others, sums, strict=True)
        }
        if largest:
            peaks = self.most(torch.tensor([float(metrics[k]) for k in largest])).tolist()
            merged |= dict(zip(largest, peaks, strict=True))
        return {key: merged[key] for key in metrics}

    def sum_gradients(self, gradients: list[torch.Tensor]) -> None:
        """Sum gradients over ranks in place, in buckets of about 64 MB of one type."""
        if self.size == 1:
            return
        for bucket in _buckets(gradients, 2**26):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            dist.all_reduce(flat)
            pieces = flat.split([grad.numel() for grad in bucket])
            for grad, piece in zip(bucket, pieces, strict=True):
                grad.copy_(piece.view_as(grad))

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def guard(self, step: int | None = None) -> Iterator[None]:
        """Turn the error of a collective whose other side is gone into RankLost."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if self.size == 1 or isinstance(error, RankLost) or not _is_loss(error):
                raise
            where = "" if step is None else f" in step {step}"
            first_line = str(error).strip().splitlines()[0]
            raise RankLost(
                f"rank {self.rank} of {self.size} has lost another rank{where} ({first_line}). See "
                "that rank's own message; --resume with the same command goes on from the last "
                "checkpoint"
            ) from error


def start_world(device: str) -> World:
    """The world of this process, from what torchrun or deepspeed put into its environment.

    device: as in --device; with several ranks and a GPU each takes the one of its LOCAL_RANK.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device)
    if size == 1:
        return World(chosen)
    rank, local = (_from_environment(name) for name in ("RANK", "LOCAL_RANK"))
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK is {local} and this node has {torch.cuda.device_count()} GPUs: start "
                "one process for each GPU, with --nproc-per-node"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return World(chosen, rank, size)


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """`start_world` around a whole training stage: the loss of another rank becomes RankLost, and
    a process group that the stage began ends with the block, before the interpreter takes its
    threads apart. One that was there before, such as that of a vLLM which answers in this process,
    stays.
    """
    found = dist.is_initialized()
    world = start_world(device)
    try:
        with world.guard():
            yield world
            world.wait()
    finally:
        while world.at_end:
            world.at_end.pop()()
        if dist.is_initialized() and not found:
            dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device of --device; "auto" is a GPU where torch sees one. Raises ValueError if it is
    missing.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no CUDA device; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is no device: give auto, cpu or cuda") from None


def _from_environment(name: str) -> int:
    try:
        return int(os.environ[name])
    except KeyError:
        raise ValueError(
            f"WORLD_SIZE is set and {name} is not: start several ranks with torchrun or deepspeed"
        ) from None


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, dist.DistNetworkError | dist.DistBackendError | ConnectionError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _LOST)


def _buckets(tensors: list[torch.Tensor], most_bytes: int) -> Iterator[list[torch.Tensor]]:
    """Tensors in order, neighbours of one type and device together up to `most_bytes`."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (not alike or size + tensor.nbytes > most_bytes):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
