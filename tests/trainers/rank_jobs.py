"""Stages on several ranks for tests: `python -m tests.trainers.rank_jobs JOBS.json`.

Torch and the trainers are imported once; each job then forks its ranks, which talk through gloo as
those that torchrun starts do. A job: {"stage": "grpo", "ranks": 2, "config": {...}}, and "dies":
{"rank": 1, "step": 2} for a rank that is killed there. Exit statuses by rank go to JOBS.out.json.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: F401
import torch

from visa_core import cli
from visa_core.config import GRPOConfig, RewardConfig, SFTConfig
from visa_core.config.grpo_parts import HeldOutSettings, ResampleSettings
from visa_core.config.lora import LoraSettings
from visa_core.config.vllm import VLLMSettings
from visa_core.training import actor, distributed
from visa_trainers import grpo, sft

STAGES = {"grpo": (GRPOConfig, grpo.train), "sft": (SFTConfig, sft.train)}
PATHS = ("model", "out", "detector", "translator", "fact_analyzer", "deepspeed_config", "reference")
PARTS = {
    "vllm": VLLMSettings,
    "lora": LoraSettings,
    "reward": RewardConfig,
    "resample": ResampleSettings,
    "held_out": HeldOutSettings,
}
LIMIT_S = 120


def settings(stage: str, given: dict[str, Any]) -> Any:
    """The stage's settings from what JSON can hold."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    for name in PATHS:
        if values.get(name) is not None:
            values[name] = Path(values[name])
    for name, kind in PARTS.items():
        if name in values:
            values[name] = kind(**values[name])
    return STAGES[stage][0](**values)


def one_rank(job: dict[str, Any], rank: int, port: int, log: Path) -> int:
    """What a rank does; its output goes to a file. Returns its exit status."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    if job.get("dies") and job["dies"]["rank"] == rank:
        die_at(job["dies"]["step"])
    if job["ranks"] == 1:
        del os.environ["WORLD_SIZE"]
    config = settings(job["stage"], job["config"])

    def train(_: Any) -> int:
        STAGES[job["stage"]][1](config)
        return 0

    cli.run = train
    return cli.status_of(None)


def die_at(step: int) -> None:
    """Kill this process in the middle of a step, between sampling and the update."""
    informative = actor.Actor.informative

    def fatal(self: Any, batch: Any, now: int, clock: Any) -> Any:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return informative(self, batch, now, clock)

    actor.Actor.informative = fatal


def run_job(job: dict[str, Any], log: Path) -> list[int]:
    """Exit statuses of the job's ranks (minus the signal for one that was killed)."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pids = []
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = one_rank(job, rank, port, log.with_suffix(f".{rank}.log"))
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    return [wait(pid) for pid in pids]


def wait(pid: int) -> int:
    """Exit status of a rank; one that takes too long is killed."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(path: str) -> None:
    """Run every job of the file, one after another."""
    file = Path(path)
    torch.set_num_threads(1)
    distributed.TIMEOUT = distributed.timedelta(seconds=LIMIT_S)
    jobs = json.loads(file.read_text())
    statuses = {name: run_job(job, file.with_name(name)) for name, job in jobs.items()}
    file.with_suffix(".out.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1])
