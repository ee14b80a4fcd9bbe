"""The products of a loss head through oneDNN against float64, forced onto any processor."""

from __future__ import annotations

import pytest
import torch

from visa_kernels.linear_logprobs import gemm, onednn

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@needs_onednn
@pytest.mark.parametrize("vocabulary", [1, 37, 300])
@pytest.mark.parametrize("alpha,beta", [(1.0, 0), (0.5, 1)])
def test_products_against_float64(
    monkeypatch: pytest.MonkeyPatch, vocabulary: int, alpha: float, beta: int
) -> None:
    """Blocks that divide the vocabulary and not; outputs full of NaN where they are overwritten."""
    monkeypatch.setattr(onednn, "BLOCK", 100)
    monkeypatch.setattr(onednn, "why_not", lambda: None)
    hidden, weight = torch.randn(20, 48), torch.randn(vocabulary, 48)
    dlogits = torch.randn(20, vocabulary + 3)[:, :vocabulary]
    assert onednn.is_faster(hidden) and not onednn.is_faster(hidden[:15])
    logits = torch.full((20, vocabulary), torch.nan)
    gemm.logits(hidden, weight, logits)
    dhidden = torch.full((20, 48), torch.nan)
    gemm.hidden_gradient(dlogits, weight, dhidden)
    start = torch.randn(vocabulary, 48)
    dweight = start.clone() if beta else torch.full_like(start, torch.nan)
    gemm.add_weight_gradient(dweight, dlogits, hidden, alpha, beta)
    h, w, g = hidden.double(), weight.double(), dlogits.double()
    for got, want in [
        (logits, h @ w.t()),
        (dhidden, g @ w),
        (dweight, alpha * g.t() @ h + beta * start.double()),
    ]:
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)


def test_other_types_and_devices_take_torchs_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "why_not", lambda: None)
    assert not onednn.is_faster(torch.zeros(64, 8, dtype=torch.bfloat16))
    assert not onednn.is_faster(torch.zeros(64, 8, device="meta"))
    monkeypatch.setattr(onednn, "why_not", lambda: "no")
    assert not onednn.is_faster(torch.zeros(64, 8))
