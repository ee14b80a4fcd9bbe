"""One provider in a process of its own, started by `bench.e2e.turns.Worker`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch

from bench import memory
from bench.e2e import peer
from bench.e2e.cases import Case, case_of, prompts_of
from bench.e2e.ours import Ours
from bench.e2e.turns import Turns
from bench.peers import trl
from bench.sync import attach

OURS = {"ours-hf": "hf", "ours-vllm": "vllm"}
TRL = {"trl": False, "trl-vllm": True}
PROVIDERS = (*OURS, *TRL)


def main() -> int:
    """Step as often as standard input asks for it; answers go where standard output went."""
    asked = json.loads(sys.argv[1])
    turns = Turns(sys.stdin, os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(asked["threads"])
    run(asked["provider"], case_of(asked["case"]), Path(asked["folder"]), asked["steps"], turns)
    os._exit(0)  # vLLM's and TRL's threads may not want to end


def why_not(provider: str) -> str | None:
    """Why a provider cannot run here at all, or None."""
    if provider in TRL and (reason := trl.why_not()) is not None:
        return reason
    if provider.endswith("vllm"):
        attach()
        if importlib.util.find_spec("vllm") is None:
            return "vllm is absent"
    return None


def run(provider: str, case: Case, folder: Path, most: int, turns: Turns) -> None:
    """At most `most` steps, each answered with seconds by phase and tokens; then peak memory.

    peak_bytes: beyond the loaded model (TRL's, which loads it itself: beyond its imports and as
    much as the weights). process_bytes: of the whole process.
    """
    if provider.endswith("vllm"):
        attach()
    prompts = prompts_of(case, most)
    if provider in OURS:
        side = Ours(case, folder, OURS[provider], most)
        weights = 0
    else:
        import datasets  # noqa: F401  (imports are no part of the memory of a step)
        from trl import GRPOTrainer  # noqa: F401

        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def steps() -> None:
        if provider in OURS:
            side.steps(prompts, turns)
        else:
            peer.steps(case, folder, prompts, turns, TRL[provider])

    turns.answer(ready=True)
    used = memory.of_call(steps, case.device)
    turns.answer(
        peak_bytes=None if used is None else used.peak - weights,
        process_bytes=process_peak(case.device),
    )


def process_peak(device: str) -> int | None:
    """Highest memory of the whole process: torch's on a GPU, resident on a CPU; None where the
    system does not tell.
    """
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return memory.resident_peak()


if __name__ == "__main__":
    sys.exit(main())
