"""A whole GRPO step against TRL's: `python -m bench.end_to_end [--turns 3] [--steps 3]`.

The same small random Qwen3, prompts, reward function and settings on both sides: sample, reward,
advantage, loss, gradients, AdamW step. Each side runs in processes of its own, in turns; the first
step of a process is not counted. Peak memory is what training adds to the loaded model.

What differs: ours samples with its own engine, which reads a prompt once for its group, and trains
with the prompt once per group; TRL calls `generate` and trains on prompt + completion per row, and
decodes completions to text for its logs. Both sides' reward function sees token ids alone, and both
compute in fp32. TRL's gradient checkpointing, on by default, is off: ours has none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import machine, memory
from bench.peers import trl

PROMPTS, GROUP, PROMPT_TOKENS, COMPLETION_TOKENS, VOCABULARY = 8, 8, 64, 64, 4096
PAD, STOP = 0, 1
SIDES = ("trl", "ours")


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides in turns and print seconds, memory and the ratio."""
    options = parse(arguments)
    if options.side:
        print(json.dumps(one_side(options)))
        return 0
    reason = trl.why_not()
    if reason is not None:
        print(f"nothing to compare with: {reason}")
        return 0
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(options.turns):
        for side in SIDES:
            found[side].append(in_process(side, options))
            print(f"turn {turn + 1}, {side}: {found[side][-1]}", flush=True)
    result = compared(found, options)
    print(json.dumps(result["summary"], indent=2))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "end_to_end.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"-> {path}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="processes of each side")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS)
    parser.add_argument("--completion-tokens", type=int, default=COMPLETION_TOKENS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out or Path(__file__).parent / "results" / machine.folder_name("cpu")
    return options


def in_process(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each counted step and peak MiB of one side, in a fresh process."""
    command = [sys.executable, "-m", "bench.end_to_end", "--side", side]
    for flag in ("steps", "threads", "hidden", "layers", "prompt_tokens", "completion_tokens"):
        command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compared(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both sides, and the ratio of each turn's medians."""
    seconds = {s: [statistics.median(t["seconds"]) for t in each] for s, each in found.items()}
    ratios = [theirs / ours for theirs, ours in zip(seconds["trl"], seconds["ours"], strict=True)]
    summary = {
        "seconds_per_step": {s: round(statistics.median(v), 3) for s, v in seconds.items()},
        "peak_mib": {s: max(t["peak_mib"] for t in each) for s, each in found.items()},
        "times_faster": [
            round(x, 3) for x in (min(ratios), statistics.median(ratios), max(ratios))
        ],
    }
    shape = {k: v for k, v in vars(options).items() if isinstance(v, int)}
    shape |= {"prompts": PROMPTS, "group": GROUP, "vocabulary": VOCABULARY}
    return {**machine.describe("cpu"), "settings": shape, "summary": summary, "turns": found}


def one_side(options: argparse.Namespace) -> dict[str, Any]:
    """This process's side: seconds of its steps but the first, and the memory they added."""
    torch.set_num_threads(options.threads)
    model = small_qwen3(options)
    generator = torch.Generator().manual_seed(1)
    shape = (PROMPTS * (options.steps + 1), options.prompt_tokens)
    prompts = torch.randint(2, VOCABULARY, shape, generator=generator).tolist()
    run = {"trl": trl_steps, "ours": our_steps}[options.side]
    times: list[float] = []
    used = memory.of_call(lambda: times.extend(run(model, prompts, options)), "cpu")
    return {
        "seconds": [round(t, 4) for t in times[1:]],
        "peak_mib": None if used is None else round(used.peak / 2**20, 1),
    }


def small_qwen3(options: argparse.Namespace) -> Any:
    """Untrained; wide enough weights that samples differ."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=options.hidden // 4,
        max_position_embeddings=4096,
        pad_token_id=PAD,
        eos_token_id=STOP,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def reward(completion: list[int]) -> float:
    """Share of even token ids: cheap, and different between completions."""
    return sum(1 for token in completion if token % 2 == 0) / max(len(completion), 1)


def our_steps(model: Any, prompts: list[list[int]], options: argparse.Namespace) -> list[float]:
    """The pieces of visa_trainers.grpo with this reward in place of its models."""
    from visa_core.config import GRPOConfig
    from visa_core.rollout.hf import HFEngine
    from visa_core.rollout.sampling import SamplingConfig
    from visa_core.types import Prompt
    from visa_kernels import group_advantages
    from visa_trainers.grpo import Policy

    nowhere = Path("unused")
    config = GRPOConfig(
        **dict.fromkeys(("model", "out", "detector", "fact_analyzer"), nowhere),
        data=("embedded",),
        precision="fp32",
        batch_size=PROMPTS * GROUP,
        accumulation=1,
        group_size=GROUP,
        max_completion=options.completion_tokens,
        lr=1e-6,
    )
    engine = HFEngine(model, [STOP], PAD)
    sampling = SamplingConfig(max_new_tokens=options.completion_tokens)
    policy = Policy(model, None, PAD, config, options.steps + 1)
    times = []
    for step in range(options.steps + 1):
        start = time.perf_counter()
        asked = prompts[step * PROMPTS : (step + 1) * PROMPTS]
        rollouts = engine.generate(asked, GROUP, sampling, step)
        rewards_B = torch.tensor([reward(row) for row in rollouts.rows()])
        advantages_B = group_advantages(rewards_B, rollouts.group_ids)
        nothing = torch.zeros(1)
        packed = [Prompt(ids=ids, query="", source="", target=nothing) for ids in asked]
        policy.update(packed, rollouts, advantages_B, step)
        engine.weights_updated()
        times.append(time.perf_counter() - start)
    return times


def trl_steps(model: Any, prompts: list[list[int]], options: argparse.Namespace) -> list[float]:
    """GRPOTrainer with the same settings; times from the start of a step to its end."""
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            times.append(time.perf_counter() - self.start)

    def rewards(completion_ids: list[list[int]], **others: Any) -> list[float]:
        return [reward(row) for row in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=options.completion_tokens,
            max_steps=options.steps + 1,
            learning_rate=1e-6,
            beta=0.0,
            loss_type="dapo",
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [text_of(row) for row in prompts]}),
            processing_class=word_tokenizer(),
            callbacks=[Watch()],
        )
        trainer.train()
    return times


def text_of(ids: list[int]) -> str:
    """Ids as the words of the tokenizer below."""
    return " ".join(f"w{i}" for i in ids)


def word_tokenizer() -> Any:
    """A tokenizer whose words are w0, w1, ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY)}
    made = Tokenizer(WordLevel(words, unk_token=f"w{PAD}"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=f"w{PAD}", eos_token=f"w{STOP}", padding_side="left"
    )


if __name__ == "__main__":
    sys.exit(main())
