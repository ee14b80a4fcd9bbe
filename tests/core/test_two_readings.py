"""Pairs read in bfloat16 and again in float32: labels of float32, what is in doubt, fallbacks."""

from __future__ import annotations

import json
import logging
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, BertForSequenceClassification

from tests.core.test_packed_scoring import TEXTS, build, byte_tokenizer, classifier, pair_posts
from visa_core.config import GRPOConfig, RewardConfig
from visa_core.data import embedded
from visa_core.models import packed_encoder, two_readings
from visa_core.models.encoder import minilm_folder
from visa_core.models.fact_analyzer import AnalyzerSettings, FactAnalyzer, _combine
from visa_core.models.first_attention import first_token_attention
from visa_core.models.packed_rows import PackedRows
from visa_core.models.prepacked_linear import PrepackedLinear, why_no_bfloat16
from visa_core.models.two_readings import TwoReadings, doubtful, tolerance
from visa_kernels import packed_attention

LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}
ORDER = (0, 1, 2)
BFLOAT16 = torch.bfloat16


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without fast products have slow ones, to the same bits or nearly."""
    monkeypatch.setattr(packed_encoder, "why_no_bfloat16", lambda device: None)


def both(model: Any, tokenizer: Any, **settings: Any) -> tuple[FactAnalyzer, FactAnalyzer]:
    return tuple(
        FactAnalyzer(model, tokenizer, AnalyzerSettings(precision=precision, **settings))
        for precision in ("float32", "bfloat16")
    )


def near_ties(model: Any, analyzer: FactAnalyzer, pairs: list[tuple[str, str]]) -> None:
    """Set the classifier's bias so that two labels nearly tie and bfloat16 alone gets one wrong:
    the pair where it errs most is half that error from the tie.
    """
    exact = analyzer.packed.logits(pairs)
    gap, near_gap = (x[:, 0] - x[:, 1] for x in (exact, analyzer.packed.logits(pairs, BFLOAT16)))
    worst = (near_gap - gap).abs().argmax()
    with torch.no_grad():
        model.classifier.bias[1] += (gap + near_gap)[worst] / 2
        model.classifier.bias[2] -= 9 - exact[:, :2].mean() + exact[:, 2].mean()


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, Any]:
    """MiniLM with a head that was not trained: real text moves its logits by about 0.1."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(
        minilm_folder(), local_files_only=True, num_labels=3, id2label=LABELS
    )
    nn.init.normal_(model.classifier.weight, std=0.3)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
    tokenizer.model_max_length = 128
    return model.eval(), tokenizer


def check_same_labels(
    model: Any, tokenizer: Any, pairs: list[tuple[str, str]], **settings: Any
) -> TwoReadings:
    """Labels of both precisions agree on pairs near ties."""
    exact, fast = both(model, tokenizer, **settings)
    near_ties(model, exact, pairs)
    firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
    want, got = exact.predict(firsts, seconds), fast.predict(firsts, seconds)
    assert torch.equal(want.argmax(1), got.argmax(1))
    twice = fast.two_readings
    assert twice is not None and 0 < twice.read_again < twice.read
    assert (want - got).abs().max() < 0.02
    return twice


def test_labels_of_real_dialogues_near_ties(minilm: tuple[Any, Any], shared_data: Path) -> None:
    lines = (shared_data / "hh_helpful" / "test.jsonl").read_text().splitlines()[:80]
    rows = [json.loads(line) for line in lines]
    pairs = [(row["chosen"][:100], row["rejected"][-80:]) for row in rows]
    model, tokenizer = minilm
    check_same_labels(model, tokenizer, pairs)
    packed = FactAnalyzer(model, tokenizer).packed
    alone = packed.logits(pairs, BFLOAT16).argmax(1)
    assert (alone != packed.logits(pairs).argmax(1)).any()


def test_labels_of_the_embedded_corpus_near_ties(minilm: tuple[Any, Any]) -> None:
    pairs = [(p.premise, p.hypothesis) for p in embedded.nli_pairs(80, seed=5)]
    check_same_labels(*minilm, pairs, split="sentence")


@pytest.mark.parametrize("split", ["auto", "sentence"])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra"])
def test_labels_of_pairs_that_are_cut(name: str, split: str) -> None:
    """Premise chunks and hypothesis sentences: means of what the likeliest chunks say."""
    model = classifier(name, initializer_range=0.3)
    tokenizer = byte_tokenizer(pair_posts()["roberta"])
    texts = [" ".join(TEXTS[i % 5 :] + TEXTS[: i % 3]) for i in range(15)]
    pairs = [(a, b) for a in texts for b in texts] + [(a, b) for a in TEXTS for b in TEXTS]
    exact, fast = both(model, tokenizer, split=split, max_tokens=60)
    firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
    want, got = exact.predict(firsts, seconds), fast.predict(firsts, seconds)
    assert torch.equal(want.argmax(1), got.argmax(1))


def test_nothing_that_is_certain_changes_its_label() -> None:
    """Logits moved at random as far as the slack allows, against the labels that were certain."""
    torch.manual_seed(0)
    pieces = 400
    logits = torch.randn(pieces, 3) * torch.rand(pieces, 1)
    slack = 0.2 * torch.rand(pieces) * (torch.rand(pieces) < 0.8)
    order = torch.randperm(pieces).tolist()
    plans: list[list[list[int]]] = []
    while len(order) > 12:
        shape = [[1], [1, 1], [2], [3, 1], [2, 2, 1]][len(plans) % 5]
        plans.append([[order.pop() for _ in range(n)] for n in shape])
    in_doubt = doubtful(logits, slack, plans, ORDER)
    doubted = [any(i in in_doubt for row in plan for i in row) for plan in plans]
    assert 0.05 < sum(doubted) / len(plans) < 0.5

    def labels(logits: torch.Tensor) -> list[int]:
        probs = logits.double().softmax(1)
        scores = dict(enumerate(probs))
        return [int(_combine(plan, scores).argmax()) for plan in plans]

    first, changed = labels(logits), set()
    for _ in range(200):
        ends = torch.randint(0, 2, (pieces, 3)) - 0.5  # differences move by up to the slack
        found = labels(logits + ends * slack[:, None])
        changed |= {i for i, (a, b) in enumerate(zip(first, found, strict=True)) if a != b}
    assert changed and all(doubted[i] for i in changed)


class Table:
    """PackedPairs whose exact logits and errors are given, by the pair's number."""

    def __init__(self, exact: torch.Tensor, errors: torch.Tensor) -> None:
        self.exact, self.errors = exact, errors
        self.model = nn.Linear(1, 1)
        self.asked: list[list[int]] = []

    def logits(self, pairs: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        rows = [int(a) for a, _ in pairs]
        if dtype == torch.bfloat16:
            return self.exact[rows] + self.errors[rows]
        self.asked.append(rows)
        return self.exact[rows]


def table_readings(table: Table, calibrated: float) -> TwoReadings:
    twice = TwoReadings(table, ORDER, 64)  # type: ignore[arg-type]
    twice._errors = torch.full((4, 3), calibrated)
    twice._versions = two_readings._versions(table.model)
    return twice


def read(twice: TwoReadings, count: int) -> torch.Tensor:
    return twice.logits([(str(i), "") for i in range(count)], [[[i]] for i in range(count)])


def test_the_tolerance_widens_with_what_is_found_in_the_call() -> None:
    """Calibration saw errors of 0.001; the pairs in doubt by it are off by 0.1."""
    margins = torch.linspace(0.004, 1.0, 100)
    exact = torch.stack([margins, torch.zeros(100), torch.full((100,), -9.0)], dim=1)
    errors = torch.zeros(100, 3)
    errors[:, 1] = 0.1
    table = Table(exact, errors)
    logits = read(table_readings(table, 0.001), 100)
    assert torch.equal(logits.argmax(1), exact.argmax(1))
    assert len(table.asked) > 1, "more were read after the first"
    rest = sorted(set(range(100)) - {i for rows in table.asked for i in rows})
    assert rest and margins[rest].min() > 0.1
    alone = (exact + errors).argmax(1)
    assert (alone != exact.argmax(1)).any()


def test_the_nearest_of_every_call_are_read_however_sure_they_are() -> None:
    exact = torch.tensor([[9.0, 0.0, -9.0]]).repeat(65, 1)
    exact[[7, 40, 50], 1] = torch.tensor([2.0, 3.0, 1.0])
    table = Table(exact, torch.zeros(65, 3))
    read(table_readings(table, 0.001), 65)
    assert table.asked == [[7, 40, 50]], "3 of 65"


def test_labels_of_tables_with_errors_of_many_sizes() -> None:
    torch.manual_seed(1)
    for size in (0.001, 0.01, 0.1):
        exact = torch.randn(500, 3)
        table = Table(exact, size * torch.randn(500, 3))
        twice = table_readings(table, 0.01)
        assert torch.equal(read(twice, 500).argmax(1), exact.argmax(1))
        again = twice.read_again
        assert again == len({i for rows in table.asked for i in rows})


def test_labels_where_errors_grow_towards_ties() -> None:
    """As a trained classifier's do: eight times as large at a tie as where it is sure."""
    torch.manual_seed(2)
    wrong = 0
    for _ in range(60):
        exact = 2 * torch.randn(128, 3)
        top = exact.topk(2).values
        size = 0.002 + 0.015 * (top[:, 1:] - top[:, :1]).exp()
        errors = size * torch.randn(128, 3)
        wrong += int(((exact + errors).argmax(1) != exact.argmax(1)).sum())
        logits = read(table_readings(Table(exact, errors), 0.01), 128)
        assert torch.equal(logits.argmax(1), exact.argmax(1))
    assert wrong > 5


def test_exact_ties_and_nan_are_read_once_and_end() -> None:
    exact = torch.zeros(10, 3)
    exact[3] = torch.nan
    table = Table(exact, torch.zeros(10, 3))
    logits = read(table_readings(table, 0.001), 10)
    assert table.asked[0] == list(range(10)) and len(table.asked) == 1
    assert logits[3].isnan().all()


def test_calls_that_save_nothing_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(torch.zeros(200, 3), torch.zeros(200, 3))
    twice = table_readings(table, 0.001)
    with caplog.at_level(logging.WARNING):
        read(twice, 200)
        read(twice, 200)
    assert len([r for r in caplog.records if "saves nothing here" in r.message]) == 1


def test_the_tolerance_is_a_multiple_of_the_errors() -> None:
    torch.manual_seed(0)
    normal = 0.01 * torch.randn(40, 3)
    rms = normal.square().mean(0).sqrt().max()
    assert tolerance(normal, 0.1 * normal[:9]) == pytest.approx(5 * float(rms))
    normal[7, 1] = 0.5  # a heavy tail
    assert tolerance(normal) == pytest.approx(0.75)
    assert tolerance(torch.full((7, 3), 0.1)) == pytest.approx(0.15), "too few for a mean"
    assert tolerance(torch.empty(0, 3)) == torch.inf


def test_earlier_calls_do_not_matter() -> None:
    tokenizer = byte_tokenizer(pair_posts()["bert"])
    model = classifier("Bert")
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
    fresh = both(model, tokenizer)[1].predict(firsts, seconds)
    used = both(model, tokenizer)[1]
    used.predict([TEXTS[0]] * 3, TEXTS[1:4])
    assert torch.equal(used.predict(firsts, seconds), fresh)


def test_changed_weights_are_calibrated_anew() -> None:
    model = classifier("Bert")
    fast = both(model, byte_tokenizer(pair_posts()["bert"]))[1]
    fast.predict(TEXTS[:1], TEXTS[1:2])
    before = fast.two_readings._errors
    with torch.no_grad():
        model.classifier.weight.mul_(3.0)
    fast.predict(TEXTS[:1], TEXTS[1:2])
    torch.testing.assert_close(fast.two_readings._errors, 3 * before, rtol=1e-3, atol=1e-5)


def test_what_does_not_serve_is_read_in_float32_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Padded batches and encoders of other layers; to the same bits."""
    tokenizer = byte_tokenizer(pair_posts()["roberta"])
    for name in ("Albert", "DebertaV2", "ModernBert", "DistilBert"):
        exact, fast = both(classifier(name), tokenizer)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            got = [fast.predict(TEXTS[:3], TEXTS[1:4]) for _ in range(2)]
        assert torch.equal(got[0], exact.predict(TEXTS[:3], TEXTS[1:4])) and fast._twice is None
        assert len([r for r in caplog.records if "not in bfloat16" in r.message]) == 1


def test_a_processor_that_gains_nothing_reads_in_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packed_encoder, "why_no_bfloat16", lambda device: "this CPU is too old")
    exact, fast = both(classifier("Bert"), byte_tokenizer(pair_posts()["bert"]))
    with caplog.at_level(logging.WARNING):
        got = fast.predict(TEXTS[:3], TEXTS[1:4])
    assert torch.equal(got, exact.predict(TEXTS[:3], TEXTS[1:4]))
    assert "this CPU is too old" in caplog.text


@pytest.mark.parametrize(
    "machine,avx512,amx,serves",
    [
        ("x86_64", True, False, True),
        ("x86_64", False, True, True),
        ("x86_64", False, False, False),
        ("AMD64", False, False, False),
        ("aarch64", False, False, True),
    ],
)
def test_which_processors_gain(
    machine: str, avx512: bool, amx: bool, serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert (why_no_bfloat16.__wrapped__("cpu") is None) == serves
    assert why_no_bfloat16.__wrapped__("mps") is not None
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert why_no_bfloat16.__wrapped__("cpu") is not None


def test_wrong_names_and_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision is .* not 'fp16'"):
        AnalyzerSettings(precision="fp16")  # type: ignore[arg-type]
    common = {"data": ("embedded:4",), "out": tmp_path, "model": tmp_path}
    parts = {"detector": tmp_path, "fact_analyzer": tmp_path}
    with pytest.raises(ValueError, match="--fact-precision is float32 or bfloat16, not 'bf16'"):
        GRPOConfig(**common, **parts, fact_precision="bf16")
    with pytest.raises(ValueError, match="--reward.form gated"):
        gated = RewardConfig(form="gated")
        GRPOConfig(**common, **parts, fact_precision="bfloat16", reward=gated)


def test_the_folder_does_not_keep_the_precision(tmp_path: Path) -> None:
    fast = both(classifier("Bert"), byte_tokenizer(pair_posts()["bert"]), split="sentence")[1]
    fast.save_pretrained(tmp_path / "nli")
    loaded = FactAnalyzer.from_pretrained(tmp_path / "nli").settings
    assert (loaded.precision, loaded.split) == ("float32", "sentence")
    asked = FactAnalyzer.from_pretrained(tmp_path / "nli", precision="bfloat16")
    assert asked.settings.precision == "bfloat16"


@pytest.mark.parametrize("gelu", [False, True])
def test_a_bfloat16_linear_against_float64(gelu: bool) -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(*shape).bfloat16() for shape in ((37, 48), (80, 48), (80,)))
    residual = torch.randn(37, 80)
    layer = PrepackedLinear(w, b, gelu=gelu)
    want = x.double() @ w.double().T + b.double()
    want = nn.functional.gelu(want) if gelu else want
    torch.testing.assert_close(layer(x).double(), want, rtol=2**-8, atol=2**-8)
    summed = PrepackedLinear(w, b).add_to(x, residual)
    assert summed.dtype == torch.float32
    plain = x.double() @ w.double().T + b.double()
    torch.testing.assert_close((summed - residual).double(), plain, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_first_tokens_is_that_of_all_tokens(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = PackedRows.of([[5] * length for length in (1, 7, 40, 2)])
    q, k, v = (3 * torch.randn(50, 4, 8).to(dtype) for _ in range(3))
    want = packed_attention(q, k, v, rows.cu_seqlens)[rows.first_B]
    got = first_token_attention(q[rows.first_B], k, v, rows)
    assert got.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got, want, rtol=bound, atol=bound)


def test_hidden_states_in_bfloat16_are_near() -> None:
    encoder = packed_encoder.PackedEncoder(build("Bert"))
    rows = PackedRows.of([list(range(5, 5 + n)) for n in (3, 41, 1, 80)])
    exact, near = encoder.hidden(rows), encoder.hidden(rows, torch.bfloat16)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.1
    first = encoder.first(rows, torch.bfloat16)
    torch.testing.assert_close(first, near[rows.first_B], rtol=0.02, atol=0.02)
