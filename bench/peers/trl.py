"""TRL's GRPO: its own loss code and its chunked head, called on tensors instead of a model.

`GRPOTrainer._compute_loss` is the function that trains; here it gets a stand-in for the trainer, so
that what runs is TRL's code and not a copy of it. Differences of definition to ours:

- rows are padded, [B, T] with a mask, where ours are packed
- gspo is loss_type "grpo" with importance_sampling_level "sequence"
- cispo's `epsilon_high` is the cap of the ratio itself; ours is 1 + clip_high. There is no lower
  cap; ours is open below with clip_low = 1
- `delta` caps the unclipped ratio for either sign of the advantage
- dapo and cispo divide by `num_items_in_batch`, of the generation batch
- log-ratios are not cut; ours are at +-20
- the metrics are read back to the host in the same call
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.peers import installed

VOCAB_CHUNK = 32768
"""Columns of a logits tile in TRL 1.16's head (`trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE`)."""


def why_not() -> str | None:
    """None where TRL's trainer can be imported."""
    return installed.why_not(installed.TRL, "trl.trainer.grpo_trainer", "trl.kernels")


def loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_beta: float = 0.0,
    importance_ratio: Tensor | None = None,
    delta: float | None = None,
    max_length: int | None = None,
    items: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """`GRPOTrainer._compute_loss` of one step on one process; loss and its logged metrics.

    logprobs, old_logprobs, ref_logprobs, mask [B, T]; advantages [B]. `loss_type` is ours: gspo is
    translated, and cispo's cap becomes 1 + clip_high. items: tokens of the step, by default those
    of the mask.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    entropy = torch.zeros_like(logprobs).detach() if entropy is None else entropy
    trainer = _stand_in(
        loss_type, clip_low, clip_high, kl_beta, delta, max_length, importance_ratio is not None
    )
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (logprobs, entropy, None)
    items = mask.sum() if items is None else torch.as_tensor(items)
    inputs = {
        "prompt_ids": mask[:, :0],
        "prompt_mask": mask[:, :0],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old_logprobs,
        "ref_per_token_logps": ref_logprobs,
        "importance_sampling_ratio": importance_ratio,
        "num_items_in_batch": items,
    }
    result = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    return result, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def _stand_in(
    loss_type: str,
    clip_low: float,
    clip_high: float,
    kl_beta: float,
    delta: float | None,
    max_length: int | None,
    corrected: bool,
) -> SimpleNamespace:
    """What `_compute_loss` reads of a trainer, with TRL's defaults and one process."""
    sequence = loss_type == "gspo"
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    return SimpleNamespace(
        loss_type="grpo" if sequence else loss_type,
        importance_sampling_level="sequence" if sequence else "token",
        epsilon_low=clip_low,
        epsilon_high=1 + clip_high if loss_type == "cispo" else clip_high,
        beta=kl_beta,
        max_completion_length=max_length,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(
            delta=delta, use_bias_correction_kl=False, steps_per_generation=1
        ),
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
    )


def head(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """TRL's chunked head as GRPOTrainer calls it: log-probabilities and entropies [N].

    The logits are recomputed in backward, 8 * N * D * V FLOPs in all; weight gradients are summed
    in fp32 and rounded once.
    """
    from trl.kernels import ChunkedLogProbFunction

    logprobs, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden, weight, bias, ids, temperature, VOCAB_CHUNK, softcap, 1.0, ("log_probs", "entropy")
    )
    return logprobs, entropy


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    **options: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Head and loss as in a training step: hidden of real tokens [N, D] in row order, ids [N],
    the rest [B, T], put in place as `add_fused_lm_head` does."""
    logprobs_N, entropy_N = head(hidden, weight, ids, bias=bias, temperature=temperature)
    real = mask.bool()
    zeros = logprobs_N.new_zeros(mask.shape)
    return loss(
        zeros.masked_scatter(real, logprobs_N),
        old_logprobs,
        advantages,
        mask,
        entropy=zeros.masked_scatter(real, entropy_N.detach()),
        **options,
    )


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """`trl.trainer.utils.selective_log_softmax`: Triton on a GPU, a loop over rows on a CPU."""
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, ids, temperature)


def token_logprobs_and_entropy(
    logits: Tensor, ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`trl.trainer.utils.selective_log_softmax_and_entropy`."""
    from trl.trainer.utils import selective_log_softmax_and_entropy

    return selective_log_softmax_and_entropy(logits, ids, temperature=temperature)
