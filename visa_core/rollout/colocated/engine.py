"""The vllm engine: vLLM inside the training process, its tensors being the trained weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from visa_core.config.vllm import VLLMSettings
from visa_core.rollout.colocated import adapters, weight_copy, weight_map
from visa_core.rollout.colocated.kv_memory import KVMemory
from visa_core.rollout.colocated.start import in_process_group, kept_process_group, start
from visa_core.rollout.errors import RolloutError
from visa_core.rollout.sampling import SamplingConfig, row_seed
from visa_core.types import RolloutBatch

log = logging.getLogger("visa_core.rollout")


class VLLMEngine:
    """Engine over a Hugging Face causal LM (or a peft model around one) whose parameters become
    views of vLLM's tensors.

    model: in its final dtype and on its device; its parameters must not be replaced, moved or cast
    afterwards, values may change in place. max_length: longest prompt plus completion.
    keeps_storage: False where the trainer partitions parameters (ZeRO): vLLM has its own copy then,
    written by `load_weights`.
    Raises ValueError where vLLM is missing, UnmappableError where weights cannot be shared.
    """

    def __init__(
        self,
        model: nn.Module,
        stop_ids: Sequence[int],
        settings: VLLMSettings | None = None,
        *,
        max_length: int | None = None,
        keeps_storage: bool = True,
    ) -> None:
        if not stop_ids:
            raise ValueError(
                "the engine needs at least one stop token; set eos_token in the model's tokenizer"
            )
        self.settings = settings or VLLMSettings()
        self.stop_ids = sorted(set(stop_ids))
        self.model = model
        self.trained = adapters.trained_weights(model)
        self.shares = keeps_storage and self.settings.weights == "views"
        self._failed: str | None = None
        self._stale = True
        self._in_group = in_process_group()
        base = adapters.base_model(model)
        self.llm = start(base, self.settings, max_length)
        self.max_length = int(self.llm.llm_engine.vllm_config.model_config.max_model_len)
        self.vllm_model: nn.Module = self.llm.apply_model(_itself)[0]
        self.worker = self.llm.collective_rpc(_itself)[0]
        self.places = self._join(base)
        device = next(self.vllm_model.parameters()).device
        pooled = device.type == "cuda" and self.settings.release_kv
        self.kv = KVMemory(self.worker, pooled)
        if keeps_storage:
            self.weights_updated()

    def _join(self, base: nn.Module) -> dict[str, weight_map.Place] | None:
        """Map the weights and share them; None where vLLM's own loader must place them."""
        try:
            places = weight_map.weight_map(
                self.trained.all(),
                self.vllm_model,
                weight_map_settings(self.llm.llm_engine.vllm_config, base),
            )
        except weight_map.UnmappableError:
            if self.shares or self.trained.adapted:
                raise
            return None
        if self.shares:
            weight_map.share(self.trained.plain, places)
            weight_map.clear_padding(places, self.vllm_model)
            _move_buffers(base, next(self.vllm_model.parameters()).device)
        return places

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
        """See Engine.generate. Raises RolloutError when vLLM fails; the engine is then of no
        further use.
        """
        self._check(prompts, sampling)
        self.kv.retake()
        if self._stale:
            self.reset_prefixes()
        from vllm import SamplingParams

        stops = self.stop_ids if stop_ids is None else sorted(set(stop_ids))
        rows = [(g, c) for g in range(len(prompts)) for c in range(completions)]
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_tokens=sampling.max_new_tokens,
                seed=row_seed(seed, first_group + g, c),
                stop_token_ids=stops,
                ignore_eos=True,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for g, c in rows
        ]
        asked = [{"prompt_token_ids": list(prompts[g])} for g, _ in rows]
        outputs = [answer.outputs[0] for answer in self._run(asked, params)]
        return _pack(outputs, completions, set(stops))

    def weights_updated(self) -> None:
        """The weights have changed in place: forget cached prefixes, merge adapters anew, or write
        vLLM's own copy where it has one.
        """
        if not self.shares:
            self._refuse_partitioned()
            whole = weight_copy.distinct(self.trained.plain)
            self.load_weights(weight_copy.buckets(whole, self.settings.bucket_mib * 2**20))
        if self.trained.adapted:
            assert self.places is not None
            adapters.merge(self.trained, self.places)
        self._stale = True

    def load_weights(self, bucketed: Iterable[weight_copy.Bucket]) -> int:
        """Write buckets of (name, whole tensor) into vLLM, such as those gathered under ZeRO-3;
        returns bytes written.
        """
        if self.shares:
            raise ValueError("the weights are shared with vLLM: there is nothing to load")
        written = 0
        for bucket in bucketed:
            if self.places is None:
                written += weight_copy.copy_by_loader(bucket, self.vllm_model)
            else:
                written += weight_copy.copy_into_places(bucket, self.places)
        self._stale = True
        return written

    def reset_prefixes(self) -> None:
        """Empty the cache of prompts now; `generate` does it by itself after an update."""
        if not self.llm.reset_prefix_cache():
            raise RolloutError(
                "vLLM still holds unfinished completions, so its cache of prompts cannot be "
                "emptied: go on from the last checkpoint with --resume"
            )
        self._stale = False

    def release(self) -> None:
        """Give back the KV cache's memory; the next `generate` takes it again."""
        if self.settings.release_kv and self._failed is None:
            self.reset_prefixes()
            self.kv.release()

    def close(self) -> None:
        """End vLLM; the model keeps its weights. Save the run's result before: where vLLM's tensors
        lie in its own memory pool the weights are moved out of it, which takes room for both.
        """
        if self._failed is None:
            self._failed = "it was closed"
        llm, self.llm, self.worker = self.llm, None, None
        if llm is None:
            return
        if self.shares and self.kv.pooled:
            self.kv.release()
            weight_map.unshare(self.trained.plain)
        del self.vllm_model, self.places, self.kv  # nothing here keeps vLLM's memory alive
        with kept_process_group(self._in_group):
            llm.llm_engine.engine_core.shutdown()

    def _check(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> None:
        if self._failed is not None:
            raise RolloutError(f"the vllm engine cannot be used any more: {self._failed}")
        empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
        if empty:
            raise ValueError(f"prompts {empty[:5]} are empty; a prompt needs at least one token")
        longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
        if longest > self.max_length:
            raise ValueError(
                f"the longest prompt and max_new_tokens = {sampling.max_new_tokens} make {longest} "
                f"tokens, but vLLM was started for {self.max_length}: lower --max-completion or "
                "--max-prompt"
            )

    def _run(self, asked: list[dict[str, Any]], params: list[Any]) -> list[Any]:
        """vLLM's answers in the order of the questions; its failures as RolloutError."""
        devices = [p.device for p in self.vllm_model.parameters() if p.device.type == "cuda"][:1]
        try:
            with torch.random.fork_rng(devices=devices):
                return self.llm.generate(asked, params, use_tqdm=False)
        except Exception as error:
            self._failed = f"it failed with {type(error).__name__}: {error}"
            raise RolloutError(
                f"vLLM failed while sampling ({type(error).__name__}: {error}); the weights are as "
                "after the last finished step: go on from the last checkpoint with --resume, or "
                "with --engine hf"
            ) from error

    def _refuse_partitioned(self) -> None:
        for name, parameter in self.trained.plain:
            if hasattr(parameter, "ds_id"):
                raise ValueError(f"{name} is partitioned: call load_weights with gathered buckets")


def weight_map_settings(vllm_config: Any, base: nn.Module) -> list[str]:
    """Reasons in vLLM's settings and in the model's kind why no weight could be shared."""
    parallel = vllm_config.parallel_config
    problems = []
    if parallel.tensor_parallel_size != 1 or parallel.pipeline_parallel_size != 1:
        problems.append("vLLM splits the model over several devices")
    if vllm_config.quant_config is not None:
        problems.append(f"vLLM quantises the weights ({vllm_config.quant_config.get_name()})")
    odd = {type(m).__name__ for m in base.modules() if type(m).__name__ == "Conv1D"}
    return problems + [f"{kind} keeps its weights transposed" for kind in sorted(odd)]


def _itself(thing: Any) -> Any:
    return thing


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _pack(outputs: list[Any], completions: int, stops: set[int]) -> RolloutBatch:
    """Rows one after another. Raises RolloutError for a row that vLLM gave up."""
    odd = {o.finish_reason for o in outputs} - {"stop", "length"}
    if odd:
        raise RolloutError(f"vLLM gave up completions ({', '.join(map(str, odd))})")
    tokens = [list(o.token_ids) for o in outputs]
    logprobs = [o.logprobs.logprobs for o in outputs]
    assert all(len(t) == len(p) for t, p in zip(tokens, logprobs, strict=True))
    finished = [o.finish_reason == "stop" for o in outputs]
    assert all(t[-1] in stops for t, f in zip(tokens, finished, strict=True) if f)
    return RolloutBatch(
        tokens=torch.tensor([token for row in tokens for token in row]),
        cu_seqlens=torch.tensor([0] + [len(row) for row in tokens]).cumsum(0),
        group_ids=torch.arange(len(tokens)) // completions,
        logprobs=torch.tensor([value for row in logprobs for value in row]),
        finished=torch.tensor(finished),
    )
