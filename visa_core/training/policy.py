"""The policy in GRPO: logprobs and loss of packed groups, and the updates on one sampled batch.

Shapes: B rows of a step, N completion tokens, of a pass or of the whole step.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from visa_core.config import GRPOConfig
from visa_core.training.distributed import World
from visa_core.training.forward import autocast, completion_logits
from visa_core.training.learner import make_learner
from visa_core.training.micro_batches import (
    MicroBatch,
    StepBatch,
    halved,
    merge,
    micro_batches,
)
from visa_core.training.onednn_linear import onednn_linears
from visa_core.training.optim import Optimizer
from visa_core.training.packed_head import (
    causal_lm,
    packed_logprobs,
    packed_states,
    prepare_packed,
    softcap,
)
from visa_core.training.rms_norm import fast_norms
from visa_core.types import Prompt, RolloutBatch
from visa_kernels import grpo_loss, linear_grpo_loss, loss_normalizer, token_logprobs

log = logging.getLogger("visa_core.training")

Metrics = dict[str, torch.Tensor | float]


def reference_of(
    model: nn.Module, kl_beta: float, other: nn.Module | None = None
) -> nn.Module | None:
    """What the KL pulls to: nothing, another model, the model itself with its adapter off, or a
    frozen copy of it.
    """
    if not kl_beta:
        return None
    if other is not None:
        return other.eval().requires_grad_(False)
    if hasattr(model, "get_base_model"):
        return model
    return copy.deepcopy(model).eval().requires_grad_(False)


class Policy:
    """The model in training, its learner, and the frozen reference where a KL is asked for.

    Where the model allows it, a micro-batch is one packed row: prompts stand once per group, and
    only completion tokens reach the head. `reference` may be the model itself if it has an adapter:
    then it is the base below it.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        pad_id: int,
        config: GRPOConfig,
        total_steps: int,
        world: World | None = None,
    ) -> None:
        self.packed = prepare_packed(model)
        if reference is not None and reference is not model and self.packed:
            prepare_packed(reference)
        self.model = model
        self.reference = reference
        self.pad_id = pad_id
        self.config = config
        self.world = world or World(next(model.parameters()).device)
        self.learner = make_learner(model, config, total_steps * config.updates, self.world)

    @property
    def optimizer(self) -> Optimizer:
        """The learner's optimizer."""
        return self.learner.optimizer  # type: ignore[attr-defined]

    def update(
        self,
        prompts: Sequence[Prompt],
        rollouts: RolloutBatch,
        advantages_B: torch.Tensor,
        step: int,
    ) -> Metrics:
        """`config.updates` optimizer steps on one sampled batch; returns the last one's metrics.

        The old policy is the one before the first of them. With a single update it is the policy
        itself and costs no pass. Groups whose rewards are equal are left out unless a KL acts on
        them; the loss is still divided by all of the step's tokens or rows.
        """
        config = self.config
        batch = StepBatch(prompts, rollouts, advantages_B)
        rows = self._rows(batch)
        micros = micro_batches(batch, rows, config.batch_size, config.token_budget)
        old_N = ref_N = None
        if config.updates > 1:
            old_N = self._frozen(self.model, nullcontext, batch, micros)
        if self.reference is not None:
            off = self.model.disable_adapter if self.reference is self.model else nullcontext
            ref_N = self._frozen(self.reference, off, batch, micros)
        normalizer = self._normalizer(rollouts)
        for update in range(config.updates):
            parts, micros = self._gradients(batch, micros, old_N, ref_N, normalizer)
            progress = self.learner.step(step * config.updates + update)
        tokens = sum(count for count, _ in parts)
        return self.world.average(merge(parts), tokens) | progress

    def _rows(self, batch: StepBatch) -> list[int]:
        """Rows that go through the model."""
        finished = batch.rollouts.finished
        rows = list(range(len(finished)))
        if not self.config.kl_beta:
            rows = batch.informative_rows()
        if self.config.mask_truncated:
            rows = [row for row in rows if finished[row]] or rows[:1]
        return rows

    def _normalizer(self, rollouts: RolloutBatch) -> float:
        """What the sum over all ranks' tokens or rows is divided by."""
        lengths = rollouts.lengths
        if self.config.mask_truncated:
            lengths = lengths[rollouts.finished]
        own = loss_normalizer(self.config.loss_type, lengths, max_length=self.config.max_completion)
        return float(self.world.sum(own))

    def _gradients(
        self,
        batch: StepBatch,
        micros: list[MicroBatch],
        old_N: torch.Tensor | None,
        ref_N: torch.Tensor | None,
        normalizer: float,
    ) -> tuple[list[tuple[int, dict[str, torch.Tensor]]], list[MicroBatch]]:
        """Add up the step's gradient; its metrics by micro-batch, and the micro-batches that fit.

        Where memory runs out the gradient is begun anew with every micro-batch cut in two; with
        several ranks, which must all do the same passes, it is an error.
        """
        while True:
            try:
                return self._passes(micros, old_N, ref_N, normalizer), micros
            except (RuntimeError, MemoryError) as error:
                single = all(len(micro.rows) == 1 for micro in micros)
                if not is_out_of_memory(error) or self.world.size > 1 or single:
                    raise
                log.warning(
                    "out of memory with %d micro-batches of up to %d rows; going on with halves: "
                    "lower --batch-size or --token-budget to save the attempt",
                    len(micros),
                    max(len(micro.rows) for micro in micros),
                )
            self.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            micros = [
                part
                for micro in micros
                for part in (halved(batch, micro) if len(micro.rows) > 1 else [micro])
            ]

    def _passes(
        self,
        micros: list[MicroBatch],
        old_N: torch.Tensor | None,
        ref_N: torch.Tensor | None,
        normalizer: float,
    ) -> list[tuple[int, dict[str, torch.Tensor]]]:
        """Forward and backward over all micro-batches; ranks with fewer do empty work."""
        parts = []
        for index in range(self.world.most(len(micros))):
            micro = micros[min(index, len(micros) - 1)]
            weight = 1.0 if index < len(micros) else 0.0
            old = None if old_N is None else old_N[micro.tokens_N]
            ref = None if ref_N is None else ref_N[micro.tokens_N]
            with self._fast():
                loss, metrics = self.learner.forward(self.loss, micro, old, ref, normalizer)
                self.learner.backward(loss * weight)
            if weight:
                parts.append((len(micro.sampler_N), {"loss": loss.detach(), **metrics}))
        return parts

    def loss(
        self,
        model: nn.Module,
        micro: MicroBatch,
        old_N: torch.Tensor | None,
        ref_N: torch.Tensor | None,
        normalizer: float,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """This micro-batch's part of the step's clipped loss, and its metrics."""
        config, device = self.config, self.world.device
        common = {
            "loss_type": config.loss_type,
            "clip_low": config.clip_low,
            "clip_high": config.clip_high,
            "normalizer": normalizer,
            "ref_logprobs": ref_N,
            "kl_beta": config.kl_beta,
            "sampler_logprobs": micro.sampler_N.to(device),
            "sampler_correction": config.sampler_correction,
        }
        advantages_B = micro.advantages_B.to(device)
        cu_seqlens = micro.cu_seqlens.to(device)
        if not self.packed:
            new_N = self.logprobs(model, micro)
            return grpo_loss(new_N, old_N, advantages_B, cu_seqlens, **common)
        with autocast(device, config.precision):
            states_ND, ids_N = packed_states(
                model, micro.prompts, micro.completions, micro.group_sizes
            )
            head = causal_lm(model).get_output_embeddings()
            return linear_grpo_loss(
                states_ND,
                head.weight,
                ids_N,
                old_N,
                advantages_B,
                cu_seqlens,
                bias=head.bias,
                temperature=config.temperature,
                softcap=softcap(model),
                **common,
            )

    def logprobs(self, model: nn.Module, micro: MicroBatch) -> torch.Tensor:
        """Logprobs [N] of the completion tokens at the sampling temperature."""
        temperature = self.config.temperature
        with autocast(self.world.device, self.config.precision):
            if self.packed:
                rows = (micro.prompts, micro.completions, micro.group_sizes)
                return packed_logprobs(model, *rows, temperature)
            prompts, sizes = micro.prompts, micro.group_sizes
            if len(set(sizes)) > 1:
                prompts = [p for p, n in zip(prompts, sizes, strict=True) for _ in range(n)]
            logits, ids = completion_logits(model, prompts, micro.completions, self.pad_id)
        return token_logprobs(logits, ids, temperature=temperature)

    @torch.no_grad()
    def _frozen(
        self,
        model: nn.Module,
        inside: Callable[[], AbstractContextManager[None]],
        batch: StepBatch,
        micros: list[MicroBatch],
    ) -> torch.Tensor:
        """Logprobs of the step's tokens [N], those of rows left out being 0."""
        found_N = torch.zeros(len(batch.rollouts.tokens), device=self.world.device)
        for micro in micros:
            with inside(), self._fast():
                if model is self.model:
                    part_N = self.learner.forward(self.logprobs, micro)
                else:
                    part_N = self.logprobs(model, micro)
            found_N = found_N.to(part_N.dtype)
            found_N[micro.tokens_N] = part_N
        return found_N

    @contextmanager
    def _fast(self) -> Iterator[None]:
        with onednn_linears(self.model), fast_norms(self.model):
            yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the host's memory was what failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)
