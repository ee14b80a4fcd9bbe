"""TRL's side: its GRPOTrainer on the same folder, prompts, lengths and reward.

Differences: TRL decodes completions to text for its logs, trains on prompt + completion per row,
and its generation is transformers' `generate`, or its colocated vLLM. Gradient checkpointing, on
by default there, is off: ours is too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.e2e.cases import Case, reward
from bench.e2e.phases import Phases
from bench.e2e.turns import Turns

TIMED = {
    "_prepare_inputs": "other",
    "_generate": "rollout",
    "_calculate_rewards": "score",
    "_get_per_token_logps_and_entropies": "logprobs",
    "training_step": "loss_backward",
}
"""Methods of GRPOTrainer by the phase that they are."""


def steps(case: Case, folder: Path, prompts: list[list[int]], turns: Turns, vllm: bool) -> None:
    """Train, one step each time that it is asked for; prompts of all steps, which TRL shuffles."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOTrainer

    phases = Phases(case.device)
    sampled: list[int] = []

    def rewards(completion_ids: list[list[int]], **others: Any) -> list[float]:
        sampled.append(sum(map(len, completion_ids)))
        return [reward(row) for row in completion_ids]

    if not turns.another():
        return
    texts = [" ".join(f"w{i}" for i in row) for row in prompts]
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=str(folder),
            reward_funcs=rewards,
            args=settings(case, out, len(prompts) // case.prompts, vllm),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        watch(trainer, phases, sampled, turns)
        trainer.train()


def settings(case: Case, out: str, count: int, vllm: bool) -> Any:
    """TRL's settings for the case."""
    from trl import GRPOConfig

    half = case.dtype != "float32"
    generation = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": case.prompt_tokens + case.completion_tokens,
    }
    return GRPOConfig(
        output_dir=out,
        use_cpu=case.device == "cpu",
        bf16=half,
        model_init_kwargs={"dtype": case.dtype},
        per_device_train_batch_size=case.micro_rows,
        gradient_accumulation_steps=case.rows // case.micro_rows,
        num_generations=case.group,
        max_completion_length=case.completion_tokens,
        max_steps=count,
        learning_rate=1e-6,
        beta=0.0,
        loss_type="dapo",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        **(generation if vllm else {}),
    )


def watch(trainer: Any, phases: Phases, sampled: list[int], turns: Turns) -> None:
    """Time the trainer's phases, answer after each step, and end it when no more are wanted."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            phases.restart()

        def on_pre_optimizer_step(self, *arguments: Any, **named: Any) -> None:
            phases.push("optimizer")

        def on_optimizer_step(self, *arguments: Any, **named: Any) -> None:
            phases.pop()

        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            seconds, cpu = phases.restart()
            turns.answer(phases=seconds, cpu=cpu, tokens=sampled[-1])
            control.should_training_stop |= not turns.another()

    trainer.add_callback(Watch())
    for method, name in TIMED.items():
        phases.wrap(trainer, method, name)
    phases.wrap(trainer.accelerator, "clip_grad_norm_", "optimizer")
    if hasattr(trainer, "vllm_generation"):
        phases.wrap(trainer.vllm_generation, "sync_weights", "sync")
