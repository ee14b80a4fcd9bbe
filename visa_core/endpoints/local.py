"""A local Hugging Face folder as a chat model: conversations are continued in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from visa_core.config.vllm import VLLMSettings
from visa_core.endpoints.account import Account
from visa_core.endpoints.chat import ChatReply, ChatRequest, FollowUp
from visa_core.endpoints.config import ChatConfig
from visa_core.models.rewriter import Rewriter
from visa_core.rollout.engine import Engine
from visa_core.rollout.factory import make_engine
from visa_core.rollout.sampling import SamplingConfig
from visa_core.training.run import step_seed
from visa_core.training.supervised import pick_device

Waiting = tuple[int, ChatRequest]

LOOK_AHEAD = 8
"""Batches of requests that are held at once, so that those alike in sampling go together."""


class LocalChat:
    """A ChatModel over an engine. Greedy replies do not depend on the batch they stand in; sampled
    ones are a function of the stream's requests and their seeds.
    """

    def __init__(
        self,
        model: Rewriter,
        engine: Engine,
        name: str,
        batch_size: int = 16,
        max_length: int | None = None,
    ) -> None:
        self.name = name
        self.account = Account()
        self.engine = engine
        self.tokenizer = model.tokenizer
        self.stop_ids = model.stop_ids
        made_for = getattr(model.model.config, "max_position_embeddings", None)
        self.limit = min(filter(None, (max_length, made_for)), default=None)
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: ChatConfig | None = None) -> LocalChat:
        """Load a folder with safetensors weights and a tokenizer. Raises ModelFolderError."""
        config = config or ChatConfig(model=str(folder))
        model = Rewriter.from_pretrained(folder)
        model.model.to(pick_device(config.device)).eval()
        engine = make_engine(
            config.engine,
            model.model,
            stop_ids=model.stop_ids,
            pad_id=model.pad_id,
            max_length=config.max_length,
            vllm=VLLMSettings(gpu_memory=0.85, release_kv=False),  # nothing else is trained here
        )
        return cls(model, engine, Path(folder).name, config.batch_size, config.max_length)

    def stream(
        self, requests: Iterable[ChatRequest], follow_up: FollowUp | None = None
    ) -> Iterator[tuple[int, ChatReply]]:
        """See ChatModel.stream."""
        source = enumerate(requests)
        waiting: list[Waiting] = []
        room = LOOK_AHEAD * self.batch_size
        while True:
            waiting += islice(source, room - len(waiting))
            if not waiting:
                return
            batch = self._alike(waiting)
            chosen = {position for position, _ in batch}
            waiting = [item for item in waiting if item[0] not in chosen]
            for (position, request), reply in zip(batch, self._replies(batch), strict=True):
                following = follow_up(request, reply) if follow_up else None
                if following is None:
                    yield position, reply
                else:
                    waiting.append((position, following))

    def _alike(self, waiting: list[Waiting]) -> list[Waiting]:
        """Up to a batch of requests that are sampled as the first one is, near it in length."""
        first = waiting[0][1]
        same = [item for item in waiting if _sampling(item[1]) == _sampling(first)]
        same.sort(key=lambda item: abs(_length(item[1]) - _length(first)))
        return same[: self.batch_size]

    def _replies(self, batch: list[Waiting]) -> list[ChatReply]:
        self.account.calls += len(batch)
        prompts = [self.encode(request) for _, request in batch]
        errors = [
            self._too_long(ids, request) for ids, (_, request) in zip(prompts, batch, strict=True)
        ]
        fitting = [i for i, error in enumerate(errors) if not error]
        replies = [
            ChatReply(error=error, attempt=request.attempt)
            for error, (_, request) in zip(errors, batch, strict=True)
        ]
        self.account.failures += len(batch) - len(fitting)
        if not fitting:
            return replies
        first = batch[0]
        sampling = SamplingConfig(
            temperature=first[1].temperature, max_new_tokens=first[1].max_tokens
        )
        seed = step_seed(first[1].seed or 0, 1000 * first[0] + first[1].attempt)
        rollouts = self.engine.generate([prompts[i] for i in fitting], 1, sampling, seed)
        finished = rollouts.finished.tolist()
        for i, row, whole in zip(fitting, rollouts.rows(), finished, strict=True):
            replies[i] = ChatReply(
                text=self.tokenizer.decode(row, skip_special_tokens=True).strip(),
                finish="stop" if whole else "length",
                prompt_tokens=len(prompts[i]),
                completion_tokens=len(row),
                attempt=batch[i][1].attempt,
            )
            self.account.prompt_tokens += len(prompts[i])
            self.account.completion_tokens += len(row)
        self.account.answers += len(fitting)
        return replies

    def encode(self, request: ChatRequest) -> list[int]:
        """Token ids of a conversation, through the tokenizer's chat template when it has one."""
        return conversation_ids(self.tokenizer, request.messages)

    def _too_long(self, ids: list[int], request: ChatRequest) -> str:
        if self.limit is None or len(ids) + request.max_tokens <= self.limit:
            return ""
        return (
            f"{len(ids)} tokens of prompt and {request.max_tokens} of reply are more than the "
            f"{self.limit} that {self.name} can read"
        )


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Token ids of a conversation up to where the reply begins: the tokenizer's chat template, or
    "user: ...", "assistant:" where it has none.
    """
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        return list(ids)
    turns = [f"{m['role']}: {m['content']}" for m in messages]
    return tokenizer("\n\n".join([*turns, "assistant:"]))["input_ids"]


def _sampling(request: ChatRequest) -> tuple[float, int, int | None]:
    return request.temperature, request.max_tokens, request.seed


def _length(request: ChatRequest) -> int:
    return sum(len(m["content"]) for m in request.messages)
