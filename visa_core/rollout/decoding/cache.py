"""Keys and values of a call: each prompt's once for its group, each completion's own behind them.

Shapes: P groups, S slots (rows still being written), Hk key heads, R query heads on one key head,
T prompt tokens (the longest), C capacity of a completion, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from visa_core.rollout.decoding.decoder import Unsupported
from visa_kernels import packed_attention, shared_prefix_decode
from visa_kernels.backend import KERNEL_DTYPES, why_no_extension


class GroupCache:
    """State of all layers, and the attention that reads and writes it.

    First every layer sees the packed prompts, then one token of every slot at a time. Slots are
    kept dense: a finished row's place is taken by the last row.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        completions: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        lengths = self.lengths = [len(prompt) for prompt in prompts]
        self.device = device
        self.capacity = capacity
        self.lengths_P = torch.tensor(lengths, device=device)
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(device)
        self.longest = max(lengths)
        self.even = min(lengths) == self.longest
        self.prompt: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.written = -1
        """Own tokens of every slot before the one at hand; -1 while prompts are read."""
        self.at_1: torch.Tensor | None = None
        """`written` on the device, [1] int64, where addresses and shapes must stand still."""
        self.window = 0
        """Own tokens that are attended to then, those from `at_1` on being masked."""
        self.groups_S = torch.arange(len(prompts)).repeat_interleave(completions)
        self.hidden_PT: torch.Tensor | None = None
        if not self.even:
            places = torch.arange(self.longest, device=device)
            self.hidden_PT = places >= self.lengths_P[:, None]
        self._lay_out()

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Prompts: q [1, H, N, D] -> [1, N, H, D]. Later: q [S, H, 1, D] -> [S, 1, H, D]."""
        if k.shape != v.shape:
            raise Unsupported("keys and values differ in shape")
        if self.written < 0:
            return self._attend_prompts(layer, q, k, v, scale)
        return self._attend_slots(layer, q, k, v, scale)

    def _attend_prompts(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        if layer != len(self.prompt):
            raise Unsupported(f"layer {layer} attends where layer {len(self.prompt)} should")
        packed = [x[0].transpose(0, 1) for x in (q, k, v)]
        out = packed_attention(
            *packed, self.cu_seqlens, causal=True, scale=scale, max_seqlen=self.longest
        )
        keys = self._padded(packed[1])
        if _has_kernel(k):  # which reads them transposed
            keys = keys.transpose(2, 3).contiguous().transpose(2, 3)
        self.prompt.append((keys, self._padded(packed[2])))
        size = (len(self.groups_S), k.shape[1], self.capacity, k.shape[3])
        self.own.append((k.new_empty(size), v.new_empty(size)))
        return out[None]

    def _padded(self, x_NHD: torch.Tensor) -> torch.Tensor:
        """[N, Hk, D] -> [P, Hk, T, D], zeros behind short prompts (NaN there would spread)."""
        if self.even:
            x_PTHD = x_NHD.reshape(-1, self.longest, *x_NHD.shape[1:])
        else:
            x_PTHD = pad_sequence(x_NHD.split(self.lengths), batch_first=True)
        return x_PTHD.transpose(1, 2).contiguous()

    def _attend_slots(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        slots, heads, _, size = q.shape
        key_heads = k.shape[1]
        own_k, own_v = (x[:slots] for x in self.own[layer])
        end = self._write(own_k, own_v, k, v)
        prompt_k, prompt_v = self.prompt[layer]
        if self.at_1 is None and _has_kernel(q):
            written_S = torch.full((slots,), end)
            caches = (prompt_k, prompt_v, self.lengths_P, own_k, own_v, written_S, self.groups_S)
            return shared_prefix_decode(q[:, :, 0], *caches, scale=scale)[:, None]
        q = (q * scale).view(slots, key_heads, heads // key_heads, size)
        scores = torch.cat(
            [self._prompt_scores(q, prompt_k), self._own_scores(q, own_k[:, :, :end])], -1
        )
        probs = scores.softmax(-1).to(v.dtype)
        of_prompt = self._grouped(probs[..., : self.longest])
        out = self._ungrouped(torch.bmm(of_prompt, prompt_v.flatten(0, 1)))
        own = torch.bmm(probs[..., self.longest :].flatten(0, 1), own_v.flatten(0, 1)[:, :end])
        return (out + own.view_as(out)).reshape(slots, 1, heads, size)

    def _write(
        self, own_k: torch.Tensor, own_v: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> int:
        """Keys and values [S, Hk, 1, D] of the token at hand to their place; how many to read."""
        if self.at_1 is None:
            own_k[:, :, self.written], own_v[:, :, self.written] = k[:, :, 0], v[:, :, 0]
            return self.written + 1
        own_k.index_copy_(2, self.at_1, k)
        own_v.index_copy_(2, self.at_1, v)
        return self.window

    def _own_scores(self, q_SHRD: torch.Tensor, own_k: torch.Tensor) -> torch.Tensor:
        """[S, Hk, R, end] float32, -inf where nothing is written yet."""
        scores = _scores(q_SHRD.flatten(0, 1), own_k.flatten(0, 1)).unflatten(0, q_SHRD.shape[:2])
        if self.at_1 is None:
            return scores
        places = torch.arange(self.window, device=scores.device)
        return scores.masked_fill(places > self.at_1, float("-inf"))

    def stand_still(self) -> None:
        """From now on the place to write is read from the device; what is unwritten is zero, since
        a masked NaN would still spread.
        """
        self.at_1 = torch.full((1,), self.written, device=self.device)
        for pair in self.own:
            for x in pair:
                x.zero_()

    def advance(self) -> None:
        """The token at hand is written in every layer."""
        self.written += 1
        if self.at_1 is not None:
            self.at_1 += 1

    def _prompt_scores(self, q_SHRD: torch.Tensor, k_PHTD: torch.Tensor) -> torch.Tensor:
        """[S, Hk, R, T] float32, -inf behind short prompts."""
        scores = _scores(self._grouped(q_SHRD), k_PHTD.flatten(0, 1))
        if self.hidden_PT is not None:
            by_group = scores.view(len(k_PHTD), -1, self.longest)
            by_group.masked_fill_(self.hidden_PT[:, None], float("-inf"))
        return self._ungrouped(scores)

    def _grouped(self, x_SHRX: torch.Tensor) -> torch.Tensor:
        """Slots side by side with the others of their group: [P * Hk, G * R, X]."""
        _, heads, repeats, size = x_SHRX.shape
        if self.slot_at is not None:
            x_SHRX = x_SHRX[self.slot_at]
        x = x_SHRX.reshape(-1, self.width, heads, repeats, size).transpose(1, 2)
        return x.reshape(-1, self.width * repeats, size)

    def _ungrouped(self, x: torch.Tensor) -> torch.Tensor:
        """[P * Hk, G * R, X] -> [S, Hk, R, X]."""
        x = x.view(self.groups, -1, self.width, x.shape[1] // self.width, x.shape[2])
        x_SHRX = x.transpose(1, 2).flatten(0, 1)
        return x_SHRX if self.place_of is None else x_SHRX[self.place_of]

    def keep(self, alive_S: torch.Tensor) -> torch.Tensor:
        """Drop slots: the last rows move into the places of finished ones. Which slots the
        remaining ones were, [S'] int64 on the CPU.
        """
        count = int(alive_S.sum())
        holes = (~alive_S[:count]).nonzero()[:, 0]
        movers = alive_S[count:].nonzero()[:, 0] + count
        source = torch.arange(count)
        source[holes] = movers
        if len(holes):
            to, since = holes.to(self.device), movers.to(self.device)
            for pair in self.own:
                for x in pair:
                    x[to, :, : self.written + 1] = x[since, :, : self.written + 1]
        self.groups_S = self.groups_S[source]
        self._lay_out()
        return source

    def _lay_out(self) -> None:
        """Where each slot stands among those of its group: a table of P groups, `width` wide.

        slot_at [P * width] names the slot at a place of the table (some slot where it is empty),
        place_of [S] the place of a slot; both None while all rows live, in order.
        """
        present, groups_S = self.groups_S.unique(return_inverse=True)
        if len(present) < len(self.lengths_P):
            self._drop_groups(present.to(self.device))
        self.groups_S = groups_S
        self.starts_S = self.lengths_P[groups_S.to(self.device)]
        self.groups = len(present)
        counts = groups_S.bincount(minlength=self.groups)
        self.width = int(counts.max()) if self.groups else 0
        self.slot_at = self.place_of = None
        whole = torch.arange(self.groups).repeat_interleave(self.width)
        if groups_S.equal(whole):
            return
        order = groups_S.argsort(stable=True)
        first = (counts.cumsum(0) - counts)[groups_S[order]]
        place_of = torch.empty_like(order)
        place_of[order] = groups_S[order] * self.width + torch.arange(len(order)) - first
        slot_at = torch.zeros(self.groups * self.width, dtype=torch.long)
        slot_at[place_of] = torch.arange(len(order))
        self.slot_at, self.place_of = slot_at.to(self.device), place_of.to(self.device)

    def _drop_groups(self, present: torch.Tensor) -> None:
        self.lengths_P = self.lengths_P[present]
        self.prompt = [(k[present], v[present]) for k, v in self.prompt]
        if self.hidden_PT is not None:
            self.hidden_PT = self.hidden_PT[present]

    def positions(self) -> torch.Tensor:
        """Position of the token at hand in every slot's row, [S] int64."""
        return self.starts_S + (self.written if self.at_1 is None else self.at_1)


def _has_kernel(x: torch.Tensor) -> bool:
    """Whether attention of slots is one call of C++; elsewhere it is a few batched products."""
    return x.device.type == "cpu" and x.dtype in KERNEL_DTYPES and why_no_extension() is None


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """q k^T of batches, in float32 also for half precision on a GPU."""
    if q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16):
        return torch.bmm(q, k.transpose(1, 2), out_dtype=torch.float32)
    scores = torch.bmm(q, k.transpose(1, 2))
    return scores if scores.dtype == torch.float64 else scores.float()
