"""K low-rank adapters on one frozen base, in one pass: LoRA whose weights have a candidate axis.

K candidates   R rank   N tokens of a pass, those of one candidate adjacent   I, O width in and out
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that get adapters by default, as they are called in Llama's and Qwen's code."""


class CandidateAdapters(nn.Module):
    """LoRA (Hu et al. 2021) of K candidates: y = W x + alpha / rank * B_k A_k x for every token x
    of candidate k.

    The base is read once for all candidates, by its own matrix products over all N tokens; only the
    low-rank part is batched by candidate (`torch.baddbmm`). The base's weights are frozen here and
    never written. Adapters are float32 and are cast to the type of the states.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: int,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = TARGETS,
        seed: int = 0,
    ) -> None:
        """All candidates start alike: A drawn by `seed`, B zero. Raises ValueError where the model
        has no such layer.
        """
        super().__init__()
        self.candidates = candidates
        self.scale = alpha / rank
        self.linears = _linears(model, targets)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.A = nn.ParameterList()
        self.B = nn.ParameterList()
        for linear in self.linears.values():
            bound = 1 / math.sqrt(linear.in_features)
            first = torch.empty(rank, linear.in_features).uniform_(
                -bound, bound, generator=generator
            )
            device = linear.weight.device
            self.A.append(nn.Parameter(first.repeat(candidates, 1, 1).to(device)))
            self.B.append(
                nn.Parameter(torch.zeros(candidates, linear.out_features, rank).to(device))
            )

    @contextmanager
    def attached(self, model: nn.Module, shares: Sequence[int]) -> Iterator[None]:
        """Within the block the model's passes have the adapters.

        shares [K]: rows of each candidate in a padded pass, or its tokens in a packed one; their
        order is that of the candidates.
        """
        if len(shares) != self.candidates:
            raise ValueError(f"{len(shares)} shares for {self.candidates} candidates")
        route = _Route(tuple(shares))
        handles = [
            linear.register_forward_hook(self._hook(a, b, route))
            for linear, a, b in zip(self.linears.values(), self.A, self.B, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, a: nn.Parameter, b: nn.Parameter, route: _Route):
        def add(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor):
            x = inputs[0]
            flat_NI, flat_NO = x.reshape(-1, x.shape[-1]), output.reshape(-1, output.shape[-1])
            a_KRI, b_KOR = a.to(x.dtype), b.to(x.dtype)
            return route.add(flat_NI, flat_NO, a_KRI, b_KOR, self.scale).view_as(output)

        return add

    def numbers(self) -> int:
        """Weights of all adapters together."""
        return sum(weight.numel() for weight in self.parameters())


class _Route:
    """Which tokens belong to which candidate."""

    def __init__(self, shares: tuple[int, ...]) -> None:
        self.shares = shares
        self.even = len(set(shares)) == 1
        self._slots: dict[tuple[int, torch.device], torch.Tensor] = {}

    def add(
        self,
        x_NI: torch.Tensor,
        y_NO: torch.Tensor,
        a_KRI: torch.Tensor,
        b_KOR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """y + scale * B_k A_k x, [N, O]. Uneven shares are laid into K equal slots, whose empty
        places hold zeros: only the low-rank products see them.
        """
        count = len(self.shares)
        unit, rest = divmod(len(x_NI), sum(self.shares))
        assert rest == 0, "a pass with other rows than were announced"
        if self.even:
            low_KMR = torch.bmm(x_NI.view(count, -1, x_NI.shape[1]), a_KRI.mT)
            y_KMO = y_NO.view(count, -1, y_NO.shape[1])
            out_KMO = torch.baddbmm(y_KMO, low_KMR, b_KOR.mT, alpha=scale)
            return out_KMO.reshape(y_NO.shape)
        slots_N = self._slots_of(unit, x_NI.device)
        width = unit * max(self.shares)
        laid = x_NI.new_zeros(count * width, x_NI.shape[1]).index_copy(0, slots_N, x_NI)
        low_KMR = torch.bmm(laid.view(count, width, -1), a_KRI.mT)
        added = torch.bmm(low_KMR, b_KOR.mT).view(count * width, -1)
        return y_NO + scale * added[slots_N]

    def _slots_of(self, unit: int, device: torch.device) -> torch.Tensor:
        key = unit, device
        if key not in self._slots:
            width = unit * max(self.shares)
            parts = [k * width + torch.arange(unit * n) for k, n in enumerate(self.shares)]
            self._slots[key] = torch.cat(parts).to(device)
        return self._slots[key]


def _linears(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer named {', '.join(targets)}: name its "
            "layers with --targets"
        )
    return found


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over all weights and buffers, by name: equal digests, equal model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        raw = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()
