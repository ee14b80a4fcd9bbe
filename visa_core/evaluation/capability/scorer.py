"""Log-probabilities of given answers: what answers share is read once, and nothing is padded.

V vocabulary   D hidden width   N tokens of a pass   C answer tokens of a pass
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from visa_core.training.packed_attention import enable_shared_prefix, packed_forward
from visa_kernels import linear_logprobs, pack_to_budget, shared_prefix_layout

log = logging.getLogger("visa_core.evaluation")

Row = Sequence[int]


class AnswerScorer:
    """Log-probabilities under a causal LM, in passes of at most about `token_budget` tokens.

    packed: questions share their few-shot prompt, and choices their question; False is the plain
    way, one padded row a choice, for models whose attention cannot be packed (a sliding window).
    Both give the same numbers up to rounding.
    """

    def __init__(
        self, model: PreTrainedModel, *, token_budget: int = 8192, packed: bool = True
    ) -> None:
        self.model = model.eval()
        self.token_budget = token_budget
        self.packed = packed
        self.limit: int | None = getattr(model.config, "max_position_embeddings", None)
        self.head = self._plain_head() if packed else None
        if packed:
            enable_shared_prefix(model)
            if self.head is None:
                log.info("%s scales its logits: its own head is used", type(model).__name__)

    @torch.no_grad()
    def next_token(self, prefix: Row, rows: Sequence[Row], ids: Row) -> torch.Tensor:
        """log p(id | prefix, row), [rows, ids] float32 on the CPU.

        Packed, the prefix is read once for as many rows as fit a pass.
        """
        self._check([len(prefix) + len(row) + 1 for row in rows])
        if not self.packed:
            joined = [[*prefix, *row] for row in rows]
            flat = self._padded(
                [row for row in joined for _ in ids], [[i] for _ in rows for i in ids]
            )
            return flat.reshape(len(rows), len(ids))
        out = torch.empty(len(rows), len(ids))
        room = max(1, self.token_budget - len(prefix))
        for chosen in _passes([len(row) for row in rows], room):
            layout = shared_prefix_layout(
                [len(prefix)], [len(rows[i]) for i in chosen], [len(chosen)]
            )
            flat = torch.tensor([t for row in (prefix, *(rows[i] for i in chosen)) for t in row])
            last = layout.cu_seqlens[2:].long() - 1
            logits_BV = self._logits(flat, layout, last)
            out[chosen] = logits_BV.log_softmax(-1)[:, list(ids)].cpu()
        return out

    @torch.no_grad()
    def continuations(
        self, prompts: Sequence[Row], choices: Sequence[Sequence[Row]]
    ) -> list[torch.Tensor]:
        """log p(choice | prompt) of each prompt's choices, summed over a choice's tokens: a tensor
        [choices] of float32 on the CPU for every prompt. Prompts and choices are not empty.

        Packed, a prompt is read once for all of its choices.
        """
        assert all(prompts) and all(len(c) for group in choices for c in group), "empty texts"
        self._check(
            [len(p) + len(c) for p, group in zip(prompts, choices, strict=True) for c in group]
        )
        if not self.packed:
            pairs = [(p, c) for p, group in zip(prompts, choices, strict=True) for c in group]
            flat = self._padded([p for p, _ in pairs], [c for _, c in pairs])
            return list(flat.split([len(group) for group in choices]))
        out: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
        sizes = [len(p) + sum(map(len, group)) for p, group in zip(prompts, choices, strict=True)]
        for chosen in _passes(sizes, self.token_budget):
            groups = [choices[i] for i in chosen]
            rows = [row for i in chosen for row in (prompts[i], *choices[i])]
            layout = shared_prefix_layout(
                [len(prompts[i]) for i in chosen],
                [len(c) for group in groups for c in group],
                [len(group) for group in groups],
            )
            ids = torch.tensor([token for row in rows for token in row])
            logprobs_C = self._logprobs(ids, layout, layout.predictors, ids[layout.completion_mask])
            sums = _sums(logprobs_C, [len(c) for group in groups for c in group])
            for i, group in zip(chosen, sums.split([len(g) for g in groups]), strict=True):
                out[i] = group
        return out

    def _logits(self, ids: torch.Tensor, layout, keep: torch.Tensor) -> torch.Tensor:
        """Logits [keep, V] in float32."""
        device = self.model.device
        output = packed_forward(
            self.model, ids.to(device), layout.to(device), logits_to_keep=keep.to(device)
        )
        return output.logits[0].float()

    def _logprobs(
        self, ids: torch.Tensor, layout, keep: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """log p(wanted) [C] at the tokens `keep` [C]; without [C, V] where the head is plain."""
        if self.head is None:
            logits_CV = self._logits(ids, layout, keep)
            picked = logits_CV.log_softmax(-1).gather(-1, wanted.to(logits_CV.device)[:, None])
            return picked[:, 0].cpu()
        device = self.model.device
        output = packed_forward(self.model.base_model, ids.to(device), layout.to(device))
        hidden_CD = output.last_hidden_state[0][keep.to(device)]
        wanted = wanted.to(device)
        return linear_logprobs(hidden_CD, self.head.weight, wanted, self.head.bias).float().cpu()

    def _padded(self, prompts: Sequence[Row], choices: Sequence[Row]) -> torch.Tensor:
        """log p(choice | prompt), [rows], by right-padded batches."""
        out = torch.empty(len(prompts))
        lengths = [len(p) + len(c) for p, c in zip(prompts, choices, strict=True)]
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        while order:
            take = max(1, self.token_budget // lengths[order[-1]])
            chosen, order = order[-take:], order[:-take]
            rows = [torch.tensor([*prompts[i], *choices[i]]) for i in chosen]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
            logits = self.model(
                input_ids=ids, attention_mask=mask.to(ids.device), use_cache=False
            ).logits
            for i, row, logits_TV in zip(chosen, rows, logits, strict=True):
                start = len(prompts[i])
                kept = logits_TV[start - 1 : len(row) - 1].float().log_softmax(-1)
                out[i] = kept.gather(-1, row[start:, None].to(kept.device)).sum()
        return out

    def _check(self, lengths: Sequence[int]) -> None:
        most = max(lengths, default=0)
        if self.limit is not None and most > self.limit:
            raise ValueError(
                f"a question with its prompt has {most} tokens, more than the {self.limit} that "
                "the model reads: give fewer examples with --shots"
            )

    @torch.no_grad()
    def _plain_head(self) -> nn.Linear | None:
        """The head, when the model's logits are its product with the last states and nothing else
        (some architectures scale or cap them), which two tokens tell.
        """
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or self.model.base_model is self.model:
            return None
        ids = torch.tensor([[0, 1]], device=self.model.device)
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.model(input_ids=ids, use_cache=False).logits
        return head if torch.allclose(head(states), logits, rtol=1e-3, atol=1e-3) else None


def _passes(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Items by pass, each at most `budget` long in all; a longer one has a pass of its own."""
    long = [[i] for i, length in enumerate(lengths) if length > budget]
    short = [i for i, length in enumerate(lengths) if length <= budget]
    packed = pack_to_budget([lengths[i] for i in short], budget)
    return long + [[short[i] for i in chosen] for chosen in packed]


def _sums(values_C: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Sums of consecutive pieces."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return torch.zeros(len(lengths)).index_add_(0, owner, values_C.float())
