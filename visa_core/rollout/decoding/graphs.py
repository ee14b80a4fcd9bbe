"""Decoding on a GPU by CUDA graphs: a step's many small kernels are launched at once.

Within a graph every shape and address stands still. Keys and values of completions lie in buffers
of their full capacity, a step attends to the first `window` of them with those not yet written
masked out, and the place that is written is read from the device. A graph belongs to one window and
one set of slots; both change seldom: windows are multiples of WINDOW, and slots are only dropped
when a quarter of them has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from visa_core.rollout.decoding.shared import SharedDecoder

WINDOW = 128
"""Own tokens of a row by which a graph's attention grows."""
KEPT = 0.75
"""Slots are dropped when at most this share of them is still being written."""

Step = Callable[[], None]


class GraphDecoder(SharedDecoder):
    """SharedDecoder whose steps are captured once and replayed.

    capture: makes a callable that does again what a function does to its buffers; by default a CUDA
    graph. The graphs of one call share a memory pool and go with the decoder.
    """

    def __init__(
        self, model: nn.Module, capacity: int, capture: Callable[[Step], Step] | None = None
    ) -> None:
        super().__init__(model, capacity)
        self._capture = capture or CudaCapture(model.device)
        self._steps: dict[int, Step] = {}
        self._token_S = torch.zeros(0, dtype=torch.long)
        self._logits_SV = torch.zeros(0)

    def prefill(self, prompts: Sequence[Sequence[int]], completions: int) -> torch.Tensor:
        """See Decoder."""
        logits_BV = super().prefill(prompts, completions)
        self.cache.stand_still()
        self._renew(logits_BV)
        return logits_BV

    def worth_dropping(self, ended_S: torch.Tensor) -> bool:
        """See Decoder."""
        return int((~ended_S).sum()) <= KEPT * len(ended_S)

    def keep(self, alive_S: torch.Tensor) -> torch.Tensor:
        """See Decoder."""
        kept = super().keep(alive_S)
        self._renew(self._logits_SV)
        return kept

    def step(self, token_S: torch.Tensor) -> torch.Tensor:
        """See Decoder. The logits are overwritten by the next step."""
        cache = self.cache
        window = min(-(-(cache.written + 1) // WINDOW) * WINDOW, cache.capacity)
        self._token_S.copy_(token_S)
        if window not in self._steps:
            cache.window = window
            self._steps[window] = self._capture(self._forward_in_place)
        self._steps[window]()
        cache.advance()
        return self._logits_SV

    def _forward_in_place(self) -> None:
        positions = self.cache.positions()[:, None]
        self._logits_SV.copy_(self._forward(self._token_S[:, None], positions, 1)[:, 0])

    def _renew(self, like_BV: torch.Tensor) -> None:
        """Buffers for the slots as they are now; earlier graphs are of no more use."""
        self._steps.clear()
        slots = len(self.cache.groups_S)
        self._logits_SV = like_BV.new_zeros(slots, like_BV.shape[1])
        self._token_S = torch.zeros(slots, dtype=torch.long, device=like_BV.device)


class CudaCapture:
    """Captures CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Step) -> Step:
        """Run the function once on a side stream, as capturing asks for, then capture it. Running
        it twice does no harm: it writes the same values to the same places.
        """
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            function()
        return graph.replay
