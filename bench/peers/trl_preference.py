"""TRL's DPO and SimPO: its own loss code, called on tensors instead of a model.

`DPOTrainer._compute_loss` and `CPOTrainer.get_batch_loss_metrics` (SimPO is a loss of it, and
experimental in TRL 1.16) are the functions that train; here they get stand-ins for the trainer and
for the model, so that what runs is TRL's code and not a copy of it. Rows are padded, the chosen
ones before the rejected ones.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import torch
from torch import Tensor

from bench.peers import installed


def why_not() -> str | None:
    """None where TRL's trainers can be imported."""
    return installed.why_not(
        installed.TRL, "trl.trainer.dpo_trainer", "trl.experimental.cpo.cpo_trainer"
    )


def dpo_loss(
    logits: Tensor,
    ids: Tensor,
    completion_mask: Tensor,
    reference: tuple[Tensor, Tensor],
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> Tensor:
    """DPO's loss of logits [2B, T, V]; ids and completion_mask [2B, T]; reference: sums [B]."""
    from trl.trainer.dpo_trainer import DPOTrainer

    logprobs = _shifted(logits, ids) * completion_mask[:, 1:]
    zeros = torch.zeros_like(logprobs)
    outputs = SimpleNamespace(
        log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    smooth = loss_type == "sigmoid" and label_smoothing > 0
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=_accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["robust" if smooth else loss_type, "sft"],
        loss_weights=[1.0, sft_weight],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": completion_mask,
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def simpo_loss(
    logits: Tensor,
    ids: Tensor,
    completion_mask: Tensor,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """SimPO's loss of logits [2B, T, V]; ids and completion_mask [2B, T]."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    labels = ids.masked_fill(completion_mask == 0, -100)
    half = len(ids) // 2
    trainer = SimpleNamespace(
        accelerator=_accelerator(),
        alpha=0.0,
        beta=beta,
        loss_type="simpo",
        simpo_gamma=gamma,
        label_smoothing=label_smoothing,
        cpo_alpha=0.0,
        aux_loss_enabled=False,
        is_encoder_decoder=False,
        pad_token_id=0,
        get_batch_logps=CPOTrainer.get_batch_logps,
        concatenated_inputs=lambda batch, **_: {
            "concatenated_input_ids": ids,
            "concatenated_attention_mask": torch.ones_like(ids),
            "concatenated_labels": labels,
        },
    )
    trainer.concatenated_forward = lambda model, batch: CPOTrainer.concatenated_forward(
        trainer, model, batch
    )
    trainer.cpo_loss = lambda *parts: CPOTrainer.cpo_loss(trainer, *parts)
    model = _answers(logits)
    batch = {"chosen_labels": labels[:half]}
    return CPOTrainer.get_batch_loss_metrics(trainer, model, batch)[0]


def _answers(logits: Tensor):
    return lambda *args, **kwargs: SimpleNamespace(logits=logits)


def _accelerator() -> SimpleNamespace:
    return SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )


def _shifted(logits: Tensor, ids: Tensor) -> Tensor:
    """log p(ids[t + 1]) under logits[t], [2B, T - 1], as TRL's patched head returns it."""
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
