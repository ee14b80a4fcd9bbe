"""The default engine: samples with the Hugging Face module that is being trained, so there is
nothing to synchronise.

Each prompt is read once, without padding, and its keys and values are shared by its completions;
finished rows leave the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from visa_core.rollout.chunks import joined
from visa_core.rollout.decoding import shared
from visa_core.rollout.decoding.decoder import Unsupported
from visa_core.rollout.decoding.graphs import GraphDecoder
from visa_core.rollout.decoding.linears import onednn_linears
from visa_core.rollout.decoding.loop import NOTHING, sample
from visa_core.rollout.decoding.memory import groups_at_once
from visa_core.rollout.decoding.plain import PlainDecoder
from visa_core.rollout.errors import RolloutError
from visa_core.rollout.padding import refuse_empty
from visa_core.rollout.sampling import SamplingConfig, row_seed
from visa_core.types import RolloutBatch

log = logging.getLogger("visa_core.rollout")


class HFEngine:
    """Engine over any Hugging Face causal LM, plain or wrapped by peft.

    `stop_ids` end a completion and are kept as its last token. Models whose attention cannot be
    exchanged are sampled through transformers' own cache, which is slower; a log line says so.
    On a GPU steps are replayed as CUDA graphs, with caches of fixed size, unless `eager`.
    """

    def __init__(
        self, model: nn.Module, stop_ids: Sequence[int], pad_id: int, *, eager: bool = False
    ) -> None:
        if not stop_ids:
            raise ValueError(
                "the engine needs at least one stop token; set eos_token in the model's tokenizer"
            )
        self.model = model
        self.stop_ids = sorted(set(stop_ids))
        self.pad_id = pad_id
        self.eager = eager
        self.why_plain = _why_plain(model)
        """Why transformers' own cache is used; None where prompts stand once a group."""
        if self.why_plain is not None:
            self._tell()

    def weights_updated(self) -> None:
        """Nothing to do: the engine reads the trained module itself."""

    def release(self) -> None:
        """Nothing to do: the cache lives as long as a call of generate."""

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        completions: int,
        sampling: SamplingConfig,
        seed: int,
        *,
        first_group: int = 0,
        stop_ids: Sequence[int] | None = None,
    ) -> RolloutBatch:
        """See Engine.generate. As many groups at a time as `memory.groups_at_once` says.

        Raises RolloutError when the model's logits are not finite.
        """
        refuse_empty(prompts)
        stops = torch.tensor(
            self.stop_ids if stop_ids is None else sorted(set(stop_ids)), dtype=torch.long
        )
        size = groups_at_once(_inner(self.model), prompts, completions, sampling.max_new_tokens)
        parts = []
        with _evaluating(self.model):
            for start in range(0, len(prompts), size):
                some = prompts[start : start + size]
                groups = range(first_group + start, first_group + start + len(some))
                seeds = [row_seed(seed, g, c) for g in groups for c in range(completions)]
                found = self._sample(some, completions, sampling, torch.tensor(seeds), stops)
                parts.append(_pack(*found, stops, completions))
        rollouts = parts[0] if len(parts) == 1 else joined(parts)
        if not rollouts.logprobs.isfinite().all():
            raise RolloutError(
                "the model's logits are not finite, so nothing can be sampled from it: go on from "
                "the last checkpoint with --resume, with a smaller --lr"
            )
        return rollouts

    def _sample(
        self,
        prompts: Sequence[Sequence[int]],
        completions: int,
        sampling: SamplingConfig,
        seeds: torch.Tensor,
        stops: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        request = (prompts, completions, sampling, seeds, stops)
        if self.why_plain is None:
            try:
                inner = _inner(self.model)
                graphs = inner.device.type == "cuda" and not self.eager
                kind = GraphDecoder if graphs else shared.SharedDecoder
                decoder = kind(inner, sampling.max_new_tokens)
                with torch.inference_mode(), shared.decode_attention(inner), onednn_linears(inner):
                    return sample(decoder, *request)
            except Unsupported as reason:
                self.why_plain = str(reason)
                self._tell()
        return sample(PlainDecoder(self.model, self.pad_id), *request)

    def _tell(self) -> None:
        log.warning(
            "%s is sampled through transformers' own cache, which copies each prompt for each of "
            "its completions: %s",
            type(_inner(self.model)).__name__,
            self.why_plain,
        )


def _inner(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a peft model, whose adapters act in its layers, or itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _why_plain(model: nn.Module) -> str | None:
    adapters = getattr(model, "peft_config", {}).values()
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters):
        return "its adapter is learned prompts"
    return shared.why_not(_inner(model))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _pack(
    tokens_BT: torch.Tensor, logprobs_BT: torch.Tensor, stops: torch.Tensor, completions: int
) -> RolloutBatch:
    """Rows up to and with their first stop token, or as long as they were written."""
    tokens_BT, logprobs_BT = tokens_BT.cpu(), logprobs_BT.cpu()
    stopped_BT = torch.isin(tokens_BT, stops)
    finished_B = stopped_BT.any(1)
    written_B = (tokens_BT != NOTHING).sum(1)
    lengths_B = torch.where(finished_B, stopped_BT.int().argmax(1) + 1, written_B)
    kept_BT = torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]
    return RolloutBatch(
        tokens=tokens_BT[kept_BT],
        cu_seqlens=torch.cat([lengths_B.new_zeros(1), lengths_B.cumsum(0)]),
        group_ids=torch.arange(len(tokens_BT)) // completions,
        logprobs=logprobs_BT[kept_BT],
        finished=finished_B,
    )
