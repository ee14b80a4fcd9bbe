"""The policy loss one row and one token at a time in float64, and batches to try it on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visa_kernels import loss_normalizer
from visa_kernels.grpo_loss.op import counted_tokens

LIMIT = 20.0
ROW_MEAN = ("grpo", "gspo")
PER_TOKEN = (
    "logprobs", "old_logprobs", "ref_logprobs", "sampler_logprobs", "entropy", "mask",
)  # fmt: skip


@dataclass
class Batch:
    """Packed rows in float64, with everything that the loss can take."""

    lengths: tuple[int, ...] = (5, 1, 0, 9, 3, 7)
    seed: int = 0
    spread: float = 0.4
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        tokens, rows = sum(self.lengths), len(self.lengths)
        old = -normal(tokens).abs() - 0.5
        self.tensors = {
            "logprobs": old + self.spread * normal(tokens),
            "old_logprobs": old,
            "ref_logprobs": old + 0.3 * normal(tokens),
            "sampler_logprobs": old + 0.5 * normal(tokens),
            "entropy": normal(tokens).abs(),
            "advantages": normal(rows),
            "mask": torch.rand(tokens, generator=generator) > 0.25,
            "cu_seqlens": torch.tensor([0, *np.cumsum(self.lengths)], dtype=torch.int64),
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def rounded(self, dtype: torch.dtype) -> Batch:
        """The same batch with logprobs as a dtype holds them, still in float64."""
        other = Batch(self.lengths, self.seed, self.spread)
        for name, x in self.tensors.items():
            other.tensors[name] = x.to(dtype).double() if x.is_floating_point() else x
        return other

    def normalizer(self, loss_type: str) -> Tensor:
        counted = counted_tokens(self["cu_seqlens"], self["mask"])
        return loss_normalizer(loss_type, counted, max_length=12)

    def arguments(self, loss_type: str, **change: Any) -> dict[str, Any]:
        """All options in use at once."""
        every = {name: x for name, x in self.tensors.items()}
        every |= {
            "loss_type": loss_type,
            "clip_low": 0.2,
            "clip_high": 0.3,
            "clip_dual": None if loss_type == "cispo" else 1.6,
            "normalizer": self.normalizer(loss_type),
            "kl_beta": 0.1,
            "sampler_correction": "token_truncate",
            "sequence_weight": "product",
            "correction_low": 0.4,
            "correction_cap": 1.5,
        }
        return every | change


def on(device: str, arguments: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Arguments on a device; float64 tensors as `dtype` where given (rows' as float32)."""

    def moved(name: str, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if dtype is not None and x.dtype == torch.float64:
            x = x.to(torch.float32 if name in ("advantages", "rewards") else dtype)
        return x.to(device)

    return {name: moved(name, x) for name, x in arguments.items()}


def by_hand(a: dict[str, Any]) -> tuple[float, np.ndarray, dict[str, float]]:
    """Loss, its gradient and the metrics, from the formulas, token by token in float64."""
    x = {name: v.double().numpy() for name, v in a.items() if isinstance(v, Tensor)}
    ends = a["cu_seqlens"].tolist()
    gradient = np.zeros(ends[-1])
    seen: list[dict[str, float]] = []
    total = 0.0
    for row, advantage in enumerate(x["advantages"]):
        kept = x.get("mask", np.ones(ends[-1]))
        tokens = [t for t in range(ends[row], ends[row + 1]) if kept[t]]
        if not tokens:
            continue
        share = 1 / (len(tokens) if a["loss_type"] in ROW_MEAN else 1) / float(a["normalizer"])
        own = {name: x[name][tokens] for name in PER_TOKEN if name in x}
        loss, slopes, facts = _row(a, own, advantage)
        total += share * loss
        gradient[tokens] = share * np.array(slopes)
        seen += facts
    return total, gradient, _metrics(a, seen)


def _row(
    a: dict[str, Any], x: dict[str, np.ndarray], advantage: float
) -> tuple[float, list[float], list[dict[str, float]]]:
    count = len(x["logprobs"])
    d = [_cut(v) for v in x["logprobs"] - x["old_logprobs"]]
    free = [abs(v) <= LIMIT for v in x["logprobs"] - x["old_logprobs"]]
    weights, outside = _weights(a, x)
    loss, slopes, facts = 0.0, [], []
    mean_ratio, mean_weight = np.exp(np.mean(d)), np.mean(weights)
    for t in range(count):
        by_row = a["loss_type"] == "gspo"
        ratio = mean_ratio if by_row else np.exp(d[t])
        term, slope = _term(a, ratio, advantage, x["logprobs"][t])
        loss += weights[t] * term
        # All of a row's terms move with each of its logprobs, by 1 / count each.
        moved = mean_weight if by_row else weights[t]
        slopes.append(slope * moved * (free[t] or a["loss_type"] == "cispo"))
        if "ref_logprobs" in x:
            to_ref = x["ref_logprobs"][t] - x["logprobs"][t]
            kl = np.exp(_cut(to_ref)) - 1 - _cut(to_ref)
            loss += a["kl_beta"] * kl
            slopes[t] += a["kl_beta"] * (1 - np.exp(_cut(to_ref))) * (abs(to_ref) <= LIMIT)
        drift = x["logprobs"][t] - x.get("sampler_logprobs", x["old_logprobs"])[t]
        facts.append(
            {
                "clip_low_frac": float(ratio < 1 - a["clip_low"] and advantage < 0),
                "clip_high_frac": float(ratio > 1 + a["clip_high"] and advantage > 0),
                "kl_k1": -drift,
                "kl_k3": np.exp(_cut(drift)) - 1 - _cut(drift),
                "max_abs_dlogp": abs(drift),
                "weight": np.exp(_cut(drift)),
                "correction_capped_frac": outside[t],
                "ref_kl": kl if "ref_logprobs" in x else 0.0,
                "entropy": x["entropy"][t] if "entropy" in x else 0.0,
            }
        )
    return loss, slopes, facts


def _term(a: dict[str, Any], r: float, advantage: float, logp: float) -> tuple[float, float]:
    """A token's term and its derivative in logp (for gspo in the mean log-ratio)."""
    clipped = min(max(r, 1 - a["clip_low"]), 1 + a["clip_high"])
    if a["loss_type"] == "cispo":
        return -clipped * advantage * logp, -clipped * advantage
    gain = min(r * advantage, clipped * advantage)
    slope = r * advantage if r * advantage <= clipped * advantage else 0.0
    dual = a.get("clip_dual")
    if dual is not None and advantage < 0 and gain < dual * advantage:
        gain, slope = dual * advantage, 0.0
    return -gain, -slope


def _weights(a: dict[str, Any], x: dict[str, np.ndarray]) -> tuple[list[float], list[float]]:
    kind, count = a.get("sampler_correction", "none"), len(x["logprobs"])
    if kind == "none":
        return [1.0] * count, [0.0] * count
    logs = x["old_logprobs"] - x["sampler_logprobs"]
    if kind.startswith("sequence"):
        whole = np.prod(np.exp(logs)) if a["sequence_weight"] == "product" else np.exp(logs.mean())
        raw = [float(whole)] * count
    else:
        raw = [float(np.exp(_cut(v))) for v in logs]
    low, cap = a["correction_low"], a["correction_cap"]
    outside = [float(w < low or w > cap) for w in raw]
    if kind.endswith("mask"):
        return [0.0 if out else w for w, out in zip(raw, outside, strict=True)], outside
    return [min(max(w, low), cap) for w in raw], outside


def _metrics(a: dict[str, Any], seen: list[dict[str, float]]) -> dict[str, float]:
    names = ["clip_low_frac", "clip_high_frac", "kl_k1", "kl_k3"]
    names += ["correction_capped_frac"] if a.get("sampler_correction", "none") != "none" else []
    names += ["ref_kl"] if a.get("ref_logprobs") is not None else []
    names += ["entropy"] if a.get("entropy") is not None else []
    out = {name: float(np.mean([s[name] for s in seen])) if seen else 0.0 for name in names}
    w = np.array([s["weight"] for s in seen])
    out["ess"] = w.sum() ** 2 / (w**2).sum() / len(w) if seen else 0.0
    out["max_abs_dlogp"] = max((s["max_abs_dlogp"] for s in seen), default=0.0)
    return out


def _cut(d: float) -> float:
    return min(max(d, -LIMIT), LIMIT)
