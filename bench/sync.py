"""Bytes and seconds of a weight sync with vLLM: `python -m bench.sync [--hidden 256 --layers 4]`.

Three ways to make vLLM sample from weights that have just changed, on one model, in turns:

- views: ours. The trained parameters are views of vLLM's tensors; only the prefix cache is reset.
- buckets: ours where nothing can be shared. Whole buckets are written into vLLM's tensors.
- trl: TRL's `VLLMGeneration.sync_weights` itself, on a stand-in for its trainer: vLLM's
  `load_weights` is called once for every parameter, then the prefix cache is reset.

Before each sync the weights change and completions are sampled, so that there is something to
write and a cache to reset. After each one vLLM's tensors are compared with the trained ones; where
they differ no time is given and the status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench import machine

STOP = 1
PROMPT = list(range(2, 66))
MAIN = "views"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 where a way left other weights than it should."""
    options = parse(arguments)
    attach()
    torch.set_num_threads(options.threads)
    with contextlib.redirect_stdout(sys.stderr):  # vLLM prints while it starts
        result = measured(options)
    for name, row in result["ways"].items():
        print(line(name, row))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"-> {path}")
    return int(not all(row["correct"] for row in result["ways"].values()))


def attach() -> None:
    """Where vLLM is not installed, look behind all other packages for the tests' build of it; so do
    processes that are started from here, as vLLM's inspection of models is.
    """
    folder = Path(sys.prefix) / "vllm"
    if importlib.util.find_spec("vllm") is None and folder.is_dir():
        sys.path.append(str(folder))
        path = [os.environ.get("PYTHONPATH", ""), str(folder)]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bucket-mib", type=int, default=256)
    parser.add_argument("--kv-gib", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--name", default="sync", help="of the JSON file")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.out = options.out or (
        Path(__file__).parent / "results" / machine.folder_name(options.device)
    )
    return options


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and bytes of every way, ratios to views taken within each round."""
    from visa_core.rollout.colocated.start import vllm_version

    model = qwen3(options)
    shared, own = engines(model, options)
    runs: dict[str, Callable[[], None]] = {MAIN: lambda: ours(shared), "buckets": lambda: ours(own)}
    if (reason := why_no_trl()) is None:
        runs["trl"] = trl_way(model, own)
    whole = sum(p.nbytes for p in model.parameters())
    rows: dict[str, dict[str, Any]] = {
        name: {"bytes": 0 if name == MAIN else whole, "seconds": [], "correct": True}
        for name in runs
    }
    for count in range(options.rounds + 2):
        for name, run in runs.items():
            engine = shared if name == MAIN else own
            change(model, engine, count)
            took = timed(run, options.device)
            rows[name]["correct"] &= holds(model, engine)
            if count >= 2:  # the first rounds warm up
                rows[name]["seconds"].append(took)
    finish(rows)
    settings = {k: v for k, v in vars(options).items() if isinstance(v, (int, float))}
    settings |= {"dtype": options.dtype, "parameters": sum(1 for _ in model.parameters())}
    return {
        **machine.describe(options.device),
        "vllm": vllm_version(),
        "settings": settings | {"weights_bytes": whole},
        "missing": {} if reason is None else {"trl": reason},
        "ways": rows,
    }


def qwen3(options: argparse.Namespace) -> Any:
    """Random weights in the shape that the options give."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=max(options.heads // 2, 1),
        head_dim=options.hidden // options.heads,
        max_position_embeddings=256,
        eos_token_id=STOP,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to(getattr(torch, options.dtype)).eval()
    return model.requires_grad_(False).to(options.device)


def engines(model: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """One engine whose tensors the model's parameters are, one with tensors of its own."""
    from visa_core.config.vllm import VLLMSettings
    from visa_core.rollout.factory import make_engine

    def engine(weights: Any) -> Any:
        settings = VLLMSettings(
            weights=weights,
            kv_cache_gib=options.kv_gib,
            max_rows=8,
            bucket_mib=options.bucket_mib,
            release_kv=False,
            eager=True,
        )
        return make_engine("vllm", model, stop_ids=[STOP], pad_id=0, max_length=128, vllm=settings)

    return engine("views"), engine("copy")


def ours(engine: Any) -> None:
    """What the trainer calls, and the reset that the next rollout would begin with."""
    engine.weights_updated()
    engine.reset_prefixes()


def why_no_trl() -> str | None:
    """None where TRL's class can be used."""
    try:
        from trl.generation.vllm_generation import VLLMGeneration  # noqa: F401
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    return None


def trl_way(model: Any, own: Any) -> Callable[[], None]:
    """TRL's own sync of this model into the engine that has weights of its own."""
    from trl.generation.vllm_generation import VLLMGeneration

    trainer = SimpleNamespace(
        mode="colocate",
        enable_sleep_mode=False,
        accelerator=SimpleNamespace(is_main_process=True),
        model=model,
        llm=own.llm,
        _dist=SimpleNamespace(
            is_fsdp=False, gather_params=lambda parameters: contextlib.nullcontext()
        ),
    )
    for name in ("_iter_named_params", "_fix_param_name_to_vllm"):
        setattr(trainer, name, getattr(VLLMGeneration, name).__get__(trainer))
    return lambda: VLLMGeneration.sync_weights(trainer)


@torch.no_grad()
def change(model: Any, engine: Any, count: int) -> None:
    """Other weights than before, and a prefix cache that holds something."""
    from visa_core.rollout.sampling import SamplingConfig

    for parameter in model.parameters():
        parameter.mul_(1.001 if count % 2 else 1 / 1.001)
    engine.generate([PROMPT, PROMPT[8:]], 2, SamplingConfig(max_new_tokens=4), count)


def timed(run: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def holds(model: Any, engine: Any) -> bool:
    """Whether every parameter's rows in vLLM hold the trained values."""
    return all(bool(engine.places[name].view().equal(p)) for name, p in model.named_parameters())


def finish(rows: dict[str, dict[str, Any]]) -> None:
    """Medians, and how many times longer than views each round took."""
    base = list(rows[MAIN]["seconds"])
    for row in rows.values():
        seconds = row.pop("seconds")
        if not row["correct"]:
            continue
        ratios = [s / b for s, b in zip(seconds, base, strict=True)]
        row["median_s"] = statistics.median(seconds)
        row["min_s"], row["max_s"] = min(seconds), max(seconds)
        row["times_views"] = round(statistics.median(ratios), 2)


def line(name: str, row: dict[str, Any]) -> str:
    """A way's figures for the terminal."""
    if not row["correct"]:
        return f"{name:<8} left wrong weights: no time is given"
    return (
        f"{name:<8} {row['bytes']:>14,} bytes  {1e3 * row['median_s']:>9.3f} ms"
        f"  {row['times_views']:>9.1f} x views"
    )


if __name__ == "__main__":
    sys.exit(main())
