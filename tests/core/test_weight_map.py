"""The map from Hugging Face names to vLLM's tensors on plain modules, and what it refuses."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from tests.vllm_build import family_model
from visa_core.config.vllm import VLLMSettings
from visa_core.rollout.colocated import weight_copy, weight_map
from visa_core.rollout.factory import make_engine


class Fused(nn.Module):
    """A linear layer of several outputs in one matrix, as vLLM's parallel layers describe it."""

    def __init__(self, sizes: list[int], inputs: int, bias: bool = False) -> None:
        super().__init__()
        self.output_partition_sizes = sizes
        self.weight = nn.Parameter(torch.randn(sum(sizes), inputs), requires_grad=False)
        if bias:
            self.bias = nn.Parameter(torch.randn(sum(sizes)), requires_grad=False)


class Padded(nn.Module):
    """A vocabulary padded to a round number of rows."""

    def __init__(self, rows: int, padded: int, width: int) -> None:
        super().__init__()
        self.org_vocab_size = rows
        self.weight = nn.Parameter(torch.full((padded, width), float("nan")), requires_grad=False)


class Theirs(nn.Module):
    """Laid out as vLLM's models are."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = Padded(5, 8, 4)
        self.attn = nn.Module()
        self.attn.qkv_proj = Fused([4, 2, 2], 4, bias=True)
        self.norm = nn.LayerNorm(4, bias=False)
        self.head = self.embed if tied else Padded(5, 8, 4)


class Ours(nn.Module):
    """The same model with a parameter per projection."""

    def __init__(self, tied: bool = True, k_rows: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.attn = nn.Module()
        for name, rows in (("q_proj", 4), ("k_proj", k_rows), ("v_proj", 2)):
            setattr(self.attn, name, nn.Linear(4, rows))
        self.norm = nn.LayerNorm(4, bias=False)
        self.head = nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def names(model: nn.Module) -> weight_map.Named:
    return list(model.named_parameters(remove_duplicate=False))


def refusal(ours: nn.Module, theirs: nn.Module, *reasons: str) -> str:
    with pytest.raises(weight_map.UnmappableError) as refused:
        weight_map.weight_map(names(ours), theirs, reasons)
    assert "Use --vllm.weights copy" in str(refused.value)
    return "\n".join(refused.value.problems)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_become_rows_of_theirs(tied: bool) -> None:
    ours, theirs = Ours(tied), Theirs(tied)
    values = {name: p.detach().clone() for name, p in names(ours)}
    identities = {name: id(p) for name, p in names(ours)}
    places = weight_map.weight_map(names(ours), theirs)
    weight_map.share(names(ours), places)
    weight_map.clear_padding(places, theirs)
    for name, parameter in names(ours):
        assert parameter.equal(values[name]) and id(parameter) == identities[name]
    parts = [values[f"attn.{p}_proj.weight"] for p in "qkv"]
    assert theirs.attn.qkv_proj.weight.equal(torch.cat(parts))
    assert theirs.embed.weight[:5].equal(values["embed.weight"])
    assert not theirs.embed.weight[5:].any(), "padding is zero, whatever it held"
    with torch.no_grad():
        ours.attn.k_proj.bias.fill_(7)
    assert theirs.attn.qkv_proj.bias.tolist()[4:6] == [7, 7]
    whole = sum(p.nbytes for p in ours.parameters())
    assert weight_map.shared_bytes(ours.named_parameters(), theirs) == (whole, 0)
    assert weight_map.shared_bytes(Ours().named_parameters(), theirs)[0] == 0


def test_gradients_reach_the_views() -> None:
    ours, theirs = Ours(), Theirs()
    weight_map.share(names(ours), weight_map.weight_map(names(ours), theirs))
    ours.attn.q_proj(torch.ones(1, 4)).sum().backward()
    torch.optim.SGD(ours.parameters(), lr=1.0).step()
    assert theirs.attn.qkv_proj.weight[:4].equal(ours.attn.q_proj.weight)


def test_every_reason_is_listed() -> None:
    theirs = Theirs()
    theirs.extra = nn.Linear(2, 3)
    ours = Ours()
    ours.other = nn.Linear(2, 2)
    text = refusal(ours, theirs, "vLLM quantises the weights (fp8)")
    assert "vLLM quantises the weights (fp8)" in text
    assert "other.weight: vLLM's model has no such parameter" in text
    del ours.other
    assert "vLLM's extra.weight (3, 2): 0 of its 3 rows" in refusal(ours, theirs)


def test_shapes_dtypes_and_repacked_weights_are_named() -> None:
    shapes = refusal(Ours(k_rows=4), Theirs())
    assert "attn.k_proj.weight: shape (4, 4)" in shapes and "(8, 4) are (2, 4)" in shapes
    assert "embed.weight: dtype torch.float64" in refusal(Ours().double(), Theirs())
    theirs = Theirs()
    theirs.attn.qkv_proj.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    assert "vLLM has repacked attn.qkv_proj.weight" in refusal(Ours(), theirs)


def test_ties_must_agree() -> None:
    assert "head.weight: tied to embed.weight in the trained model, but not in vLLM" in refusal(
        Ours(tied=True), Theirs(tied=False)
    )
    assert "head.weight: tied to embed.weight in vLLM, but not in the trained" in refusal(
        Ours(tied=False), Theirs(tied=True)
    )


def test_long_lists_are_cut_but_kept() -> None:
    error = weight_map.UnmappableError([f"p{i}" for i in range(30)])
    assert "p11" in str(error) and "p12" not in str(error) and "and 18 more" in str(error)
    assert len(error.problems) == 30


def test_buckets_hold_at_most_their_bytes_and_are_read_lazily() -> None:
    alive = []

    def gathered():
        for i, size in enumerate((3, 3, 9, 1, 1)):
            alive.append(i)
            yield f"p{i}", torch.zeros(size)

    made = weight_copy.buckets(gathered(), max_bytes=24)
    first = next(made)
    assert [name for name, _ in first] == ["p0", "p1"] and len(alive) == 3
    assert [[name for name, _ in bucket] for bucket in made] == [["p2"], ["p3", "p4"]]
    assert list(weight_copy.buckets([], 1)) == []
    with pytest.raises(ValueError, match="at least 1 byte"):
        list(weight_copy.buckets([], 0))


def test_a_bucket_goes_to_its_places() -> None:
    ours, theirs = Ours(), Theirs()
    places = weight_map.weight_map(names(ours), theirs)
    written = [
        weight_copy.copy_into_places(bucket, places)
        for bucket in weight_copy.buckets(weight_copy.distinct(names(ours)), 64)
    ]
    assert sum(written) == sum(p.nbytes for p in ours.parameters()) and len(written) > 2
    assert theirs.attn.qkv_proj.weight[4:6].equal(ours.attn.k_proj.weight)
    with pytest.raises(ValueError, match="no place for nonsense"):
        weight_copy.copy_into_places([("nonsense", torch.zeros(1))], places)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="--vllm.gpu-memory must lie in"):
        VLLMSettings(gpu_memory=0)
    with pytest.raises(ValueError, match="--vllm.kv-cache-gib must be above 0"):
        VLLMSettings(kv_cache_gib=0.0)
    with pytest.raises(ValueError, match="--vllm.max-rows must be at least 1"):
        VLLMSettings(max_rows=0)


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    model = family_model("qwen3")
    with pytest.raises(ValueError, match=r"pip install 'visa-core\[vllm\]', or use --engine hf"):
        make_engine("vllm", model, stop_ids=[1], pad_id=0)
    with pytest.raises(ValueError, match="at least one stop token"):
        make_engine("vllm", model, stop_ids=[], pad_id=0)
    with pytest.raises(ValueError, match="--engine must be one of hf, vllm"):
        make_engine("tgi", model, stop_ids=[1], pad_id=0)


def test_a_second_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ValueError, match="must run in its process; unset it"):
        make_engine("vllm", family_model("qwen3"), stop_ids=[1], pad_id=0)


def test_a_partitioned_parameter_is_mapped_by_its_whole_shape() -> None:
    ours, theirs = Ours(), Theirs()
    expected = weight_map.weight_map(names(ours), theirs)
    for parameter in ours.parameters():  # as ZeRO-3 leaves them
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert weight_map.weight_map(names(ours), theirs).keys() == expected.keys()
