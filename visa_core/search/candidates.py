"""What K temporary models say: answers and log-probabilities of all of them in one pass.

K candidates   P questions   T tokens   V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from visa_core.endpoints.chat import message
from visa_core.endpoints.local import conversation_ids
from visa_core.evaluation.capability.scorer import AnswerScorer
from visa_core.models.rewriter import Rewriter
from visa_core.rollout.padding import left_pad
from visa_core.search.adapters import CandidateAdapters
from visa_core.training.packed_attention import NAME, enable_shared_prefix, packed_forward
from visa_kernels import shared_prefix_layout


class Base:
    """The frozen model that is adapted: weights, tokenizer, and how a question is put to it."""

    def __init__(self, opened: Rewriter, *, packed: bool = True) -> None:
        self.model: PreTrainedModel = opened.model.eval().requires_grad_(False)
        self.tokenizer: PreTrainedTokenizerBase = opened.tokenizer
        self.pad_id = opened.pad_id
        self.stop_ids = opened.stop_ids
        self.limit: int | None = getattr(self.model.config, "max_position_embeddings", None)
        if packed and _can_be_packed(self.model):
            enable_shared_prefix(self.model)

    @property
    def packed(self) -> bool:
        """Whether passes hold rows one behind the other, without padding."""
        return self.model.config._attn_implementation == NAME

    def prompt(self, question: str) -> list[int]:
        """Token ids of a question up to where the answer begins."""
        return conversation_ids(self.tokenizer, [message("user", question)])

    def completion(self, answer: str) -> list[int]:
        """Token ids of an answer and its end.

        Raises ValueError for text that the tokenizer cannot hold: a rewriter may have another.
        """
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise ValueError(
                f"the base model's tokenizer has no tokens for {answer[:80]!r}: the rewriter's "
                "texts must be in the base's vocabulary; take a base or a rewriter whose tokenizer "
                "covers the task's language"
            )
        return [*ids, self.tokenizer.eos_token_id]


@dataclass(frozen=True)
class Candidates:
    """K temporary models: a frozen base under the adapters of each."""

    base: Base
    adapters: CandidateAdapters

    @property
    def count(self) -> int:
        """K."""
        return self.adapters.candidates

    @torch.no_grad()
    def answers(
        self,
        questions: Sequence[str],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[list[str]]:
        """Each candidate's answers to P questions, [K][P]; greedy by default.

        Sampled answers of all candidates draw the same random numbers, question by question, so
        that candidates differ by their weights alone.
        """
        prompts = [self.base.prompt(question) for question in questions]
        self._check(max(map(len, prompts)), max_tokens)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        texts = [[""] * len(prompts) for _ in range(self.count)]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = self._decode([prompts[i] for i in chosen], max_tokens, temperature, seed + start)
            for k in range(self.count):
                for i, row in zip(chosen, rows[k], strict=True):
                    text = self.base.tokenizer.decode(row, skip_special_tokens=True)
                    texts[k][i] = text.strip()
        return texts

    def _check(self, prompt: int, more: int) -> None:
        if self.base.limit is not None and prompt + more > self.base.limit:
            raise ValueError(
                f"a prompt of {prompt} tokens and {more} of answer are more than the "
                f"{self.base.limit} that the base model can read; lower --max-tokens"
            )

    def _decode(
        self, prompts: list[list[int]], max_tokens: int, temperature: float, seed: int
    ) -> list[list[list[int]]]:
        model, shares = self.base.model, [len(prompts)] * self.count
        ids_PT, mask_PT = left_pad(prompts, self.base.pad_id, model.device)
        mask = mask_PT.repeat(self.count, 1)
        step_ids, positions = ids_PT.repeat(self.count, 1), (mask.cumsum(1) - 1).clamp(min=0)
        stops = torch.tensor(self.base.stop_ids, device=model.device)
        done = torch.zeros(len(mask), dtype=torch.bool, device=model.device)
        generator = torch.Generator().manual_seed(seed)
        cache, said = DynamicCache(config=model.config), []
        with self.adapters.attached(model, shares):
            for _ in range(max_tokens):
                output = model(
                    input_ids=step_ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                noise_P = torch.rand(len(prompts), generator=generator).to(model.device)
                next_ids = _pick(output.logits[:, -1], temperature, noise_P.repeat(self.count))
                said.append(torch.where(done, self.base.pad_id, next_ids))
                mask = torch.cat([mask, (~done).long()[:, None]], 1)
                done = done | torch.isin(next_ids, stops)
                if bool(done.all()):
                    break
                step_ids, positions = next_ids[:, None], positions[:, -1:] + 1
        rows = _until_stop(torch.stack(said, 1).tolist(), set(self.base.stop_ids))
        return [rows[k * len(prompts) : (k + 1) * len(prompts)] for k in range(self.count)]

    @torch.no_grad()
    def next_token(
        self,
        prefix: Sequence[int],
        rows: Sequence[Sequence[int]],
        ids: Sequence[int],
        token_budget: int = 16384,
    ) -> torch.Tensor:
        """log p(id | prefix, row) under each candidate, [K, rows, ids] float32 on the CPU.

        Packed, every candidate reads the prefix once a pass.
        """
        self._check(len(prefix) + max(map(len, rows)), 1)
        model, out = self.base.model, torch.empty(self.count, len(rows), len(ids))
        room = max(1, token_budget // self.count - len(prefix))
        for part in _portions([len(row) for row in rows], room):
            chosen = [list(rows[i]) for i in part]
            if self.base.packed:
                last_BV = self._packed_last(list(prefix), chosen)
            else:
                joined, mask = left_pad(
                    [[*prefix, *row] for row in chosen], self.base.pad_id, model.device
                )
                joined, mask = joined.repeat(self.count, 1), mask.repeat(self.count, 1)
                with self.adapters.attached(model, [len(chosen)] * self.count):
                    last_BV = model(
                        input_ids=joined,
                        attention_mask=mask,
                        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                        use_cache=False,
                        logits_to_keep=1,
                    ).logits[:, -1]
            logp = last_BV.float().log_softmax(-1)[:, list(ids)].cpu()
            out[:, part] = logp.view(self.count, len(chosen), len(ids))
        return out

    def _packed_last(self, prefix: list[int], rows: list[list[int]]) -> torch.Tensor:
        """Logits after each row, [K * rows, V]."""
        model, count = self.base.model, self.count
        lengths = [len(row) for row in rows]
        layout = shared_prefix_layout([len(prefix)] * count, lengths * count, [len(rows)] * count)
        one = [*prefix, *(token for row in rows for token in row)]
        ends = torch.tensor(lengths).cumsum(0) + len(prefix) - 1
        keep = (torch.arange(count)[:, None] * len(one) + ends).flatten()
        ids, device = torch.tensor(one).repeat(count), model.device
        with self.adapters.attached(model, [len(one)] * count):
            output = packed_forward(
                model, ids.to(device), layout.to(device), logits_to_keep=keep.to(device)
            )
        return output.logits[0]


def _pick(logits_BV: torch.Tensor, temperature: float, noise_B: torch.Tensor) -> torch.Tensor:
    """The likeliest token, or one drawn by inverse distribution function, [B]."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    filled_BV = (logits_BV.float() / temperature).softmax(-1).cumsum(-1)
    aim_B1 = (noise_B[:, None] * filled_BV[:, -1:]).clamp(max=1 - 1e-6)
    return (filled_BV < aim_B1).sum(-1).clamp(max=logits_BV.shape[1] - 1)


def _until_stop(rows: list[list[int]], stops: set[int]) -> list[list[int]]:
    cut = []
    for row in rows:
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        cut.append(row[:end])
    return cut


def _portions(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Neighbouring items in portions of at most `room`; a longer one has a portion of its own."""
    portions: list[list[int]] = [[]]
    used = 0
    for i, length in enumerate(lengths):
        if portions[-1] and used + length > room:
            portions.append([])
            used = 0
        portions[-1].append(i)
        used += length
    return portions


def _can_be_packed(model: PreTrainedModel) -> bool:
    """Plain attention over the whole text, and a head whose product are the logits."""
    text_config = model.config.get_text_config()
    windows = set(getattr(text_config, "layer_types", None) or ()) - {"full_attention"}
    if windows or getattr(text_config, "attn_logit_softcapping", None):
        return False
    if getattr(text_config, "sliding_window", None) and not hasattr(text_config, "layer_types"):
        return False
    return AnswerScorer(model, packed=False)._plain_head() is not None
