"""Our side: the trainer's own pieces with a reward of token ids in place of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.e2e.cases import PAD, STOP, Case, reward
from bench.e2e.phases import Phases
from bench.e2e.turns import Turns


class Ours:
    """Engine, policy and optimizer as `visa_trainers.grpo` builds them."""

    def __init__(self, case: Case, folder: Path, engine: str, total_steps: int) -> None:
        from transformers import AutoModelForCausalLM

        self.case = case
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, case.dtype))
        self.model.to(case.device)
        self.engine_name, self.total_steps = engine, total_steps

    def start(self) -> None:
        """What training adds to the loaded model."""
        from visa_core.config.vllm import VLLMSettings
        from visa_core.rollout.factory import make_engine
        from visa_core.rollout.sampling import SamplingConfig
        from visa_core.training.policy import Policy

        case = self.case
        longest = case.prompt_tokens + case.completion_tokens
        settings = VLLMSettings(max_rows=case.rows)
        self.engine = make_engine(
            self.engine_name,
            self.model,
            stop_ids=[STOP],
            pad_id=PAD,
            max_length=longest,
            vllm=settings,
        )
        self.sampling = SamplingConfig(max_new_tokens=case.completion_tokens)
        self.policy = Policy(self.model, None, PAD, our_config(case), self.total_steps)
        self.phases = Phases(case.device)
        self.phases.watch(self.model.model, "logprobs", "loss_backward")
        self.phases.wrap(self.policy.optimizer, "step", "optimizer")

    def steps(self, prompts: list[list[int]], turns: Turns) -> None:
        """Start, then step as often as asked; prompts of all steps, one after another."""
        self.start()
        count, index = self.case.prompts, 0
        while turns.another():
            phases, cpu, tokens = self.step(prompts[index * count : (index + 1) * count], index)
            turns.answer(phases=phases, cpu=cpu, tokens=tokens)
            index += 1

    def step(self, prompts: list[list[int]], index: int) -> tuple[dict[str, float], float, int]:
        """Sample, score, train, sync: seconds by phase, CPU seconds, tokens sampled."""
        from visa_core.types import Prompt
        from visa_kernels import group_advantages

        phase = self.phases.phase
        self.phases.restart()
        with phase("rollout"):
            rollouts = self.engine.generate(prompts, self.case.group, self.sampling, index)
        with phase("score"):
            rewards_B = torch.tensor([reward(row) for row in rollouts.rows()])
            advantages_B = group_advantages(rewards_B, rollouts.group_ids)
        with phase("sync"):
            self.engine.release()
        with phase("loss_backward"):
            nothing = torch.zeros(1)
            asked = [Prompt(ids=ids, query="", source="", target=nothing) for ids in prompts]
            self.policy.update(asked, rollouts, advantages_B, index)
        with phase("sync"):
            self.engine.weights_updated()
        return (*self.phases.restart(), len(rollouts.tokens))


def our_config(case: Case) -> Any:
    """The trainer's settings; the models that it names are not loaded here."""
    from visa_core.config import GRPOConfig

    nowhere = Path("unused")
    return GRPOConfig(
        **dict.fromkeys(("model", "out", "detector", "fact_analyzer"), nowhere),
        data=("embedded",),
        precision="fp32" if case.dtype == "float32" else "bf16",
        batch_size=case.micro_rows,
        accumulation=case.rows // case.micro_rows,
        group_size=case.group,
        max_completion=case.completion_tokens,
        lr=1e-6,
    )
