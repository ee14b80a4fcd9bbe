"""Decoding with buffers that stand still, as CUDA graphs need them, against decoding that grows.

Without a GPU a "graph" is the function itself, run again on the same buffers; on one it is a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.lms import PAD, STOP, VOCAB, random_lm, random_rows
from visa_core.rollout.decoding import graphs, shared
from visa_core.rollout.decoding.graphs import GraphDecoder
from visa_core.rollout.decoding.loop import NOTHING, sample
from visa_core.rollout.decoding.shared import SharedDecoder
from visa_core.rollout.hf import HFEngine
from visa_core.rollout.sampling import SamplingConfig, row_seed

PROMPTS = random_rows((3, 9, 1, 6), seed=4)
GROUP, LIMIT = 5, 21
SAMPLING = SamplingConfig(temperature=0.9, max_new_tokens=LIMIT)
STOPS = torch.tensor([STOP, *range(3, VOCAB, 6)])


class Counted:
    """Captures by running the function again; counts how often it is asked to."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        function()

        def replay() -> None:
            self.replays += 1
            function()

        return replay


def drawn(decoder: Any, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and logprobs up to each row's first stop token."""
    seeds = torch.tensor([row_seed(5, g, c) for g in range(len(PROMPTS)) for c in range(GROUP)])
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    with torch.inference_mode(), shared.decode_attention(inner):
        tokens, logprobs = sample(decoder(inner), PROMPTS, GROUP, SAMPLING, seeds, STOPS)
    stopped = torch.isin(tokens, STOPS)
    after = stopped.cumsum(1) - stopped.int() > 0
    return tokens.masked_fill(after, NOTHING), logprobs.masked_fill(after, 0.0)


@pytest.mark.parametrize("window", [4, 8, 64])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2", "mistral", "lora"])
def test_standing_still_changes_no_token(
    kind: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "WINDOW", window)
    model = random_lm(kind, seed=2, std=0.4)
    capture = Counted()
    still = drawn(lambda lm: GraphDecoder(lm, LIMIT, capture), model)
    grown = drawn(lambda lm: SharedDecoder(lm, LIMIT), model)
    assert still[0].equal(grown[0])
    torch.testing.assert_close(still[1], grown[1], rtol=1e-4, atol=1e-5)
    lengths = (still[0] != NOTHING).sum(1)
    assert len(lengths.unique()) > 4 and lengths.max() > window or window == 64
    longest = int(lengths.max())
    assert capture.replays in (longest - 1, longest), "one step a token"
    assert capture.captures < longest, "graphs are used again"


def test_slots_are_dropped_when_a_quarter_has_ended() -> None:
    decoder = GraphDecoder(random_lm("qwen3"), LIMIT, Counted())
    ended = torch.zeros(8, dtype=torch.bool)
    worth = []
    for slot in range(8):
        ended[slot] = True
        worth.append(decoder.worth_dropping(ended))
    assert worth == [False, True, True, True, True, True, True, True]


def test_what_is_not_written_yet_does_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory may hold NaN."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda x, *a, **k: empty(x, *a, **k).fill_(torch.nan)
    )
    model = random_lm("qwen3", seed=2, std=0.4)
    tokens, logprobs = drawn(lambda lm: GraphDecoder(lm, LIMIT, Counted()), model)
    assert logprobs.isfinite().all() and (tokens >= NOTHING).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_on_a_gpu_give_what_eager_steps_give(dtype: torch.dtype) -> None:
    model = random_lm("qwen3", seed=2, std=0.4).to("cuda", dtype)
    found = [
        HFEngine(model, STOPS.tolist(), PAD, eager=eager).generate(PROMPTS, GROUP, SAMPLING, 5)
        for eager in (True, False)
    ]
    if dtype == torch.float32:
        assert found[0].tokens.equal(found[1].tokens)
        torch.testing.assert_close(found[0].logprobs, found[1].logprobs, rtol=1e-3, atol=1e-4)
    first = [[row[0] for row in batch.rows()] for batch in found]
    assert first[0] == first[1]
    assert all(batch.logprobs.isfinite().all() for batch in found)
