"""What the compile gate builds of `grpo_loss`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from visa_kernels.grpo_loss.triton_kernel import choices, grpo_loss_kernel, tile


def compile_cases() -> Iterable[tuple[str, Any, dict[str, str | None], dict[str, Any], int, int]]:
    """What the compile gate builds: every loss type, few and all options, every tile size."""
    plain = {"ref": False, "mask": False, "correction": "none", "weight": "product"}
    every = {"ref": True, "mask": True, "correction": "token_mask", "weight": "product"}
    sequence = {
        "ref": True, "mask": True, "correction": "sequence_truncate", "weight": "geometric",
    }  # fmt: skip
    chosen = [
        ("dapo-plain", "dapo", plain, (64, 256, 1024, 2048)),
        ("gspo-plain", "gspo", plain, (512, 2048)),
        ("grpo-all", "grpo", every, (1024, 2048)),
        ("cispo-all", "cispo", every, (64, 1024)),
        ("gspo-all", "gspo", every, (256, 2048)),
        ("dapo-sequence", "dapo", sequence, (64, 1024)),
        ("gspo-sequence", "gspo", sequence, (512, 2048)),
    ]
    for name, loss_type, options, lengths in chosen:
        for length in lengths:
            yield _compile_case(f"{name}-{length}", loss_type, length, **options)


def _compile_case(
    name: str, loss_type: str, length: int, *, ref: bool, mask: bool, correction: str, weight: str
) -> tuple[str, Any, dict[str, str | None], dict[str, Any], int, int]:
    signature = {
        "logp_ptr": "*fp32",
        "old_ptr": "*bf16" if ref else "*fp32",
        "scores_ptr": "*fp32",
        "cu_ptr": "*i64" if mask else "*i32",
        "norm_ptr": "*fp32" if mask else None,
        "ref_ptr": "*fp32" if ref else None,
        "sampler_ptr": "*fp32" if correction != "none" else None,
        "entropy_ptr": "*fp32" if ref else None,
        "mask_ptr": "*i1" if mask else None,
        "ids_ptr": "*i64" if correction == "sequence_truncate" else None,
        "score_mask_ptr": "*i1" if mask else None,
        **{f"{out}_ptr": "*fp32" for out in ("dlogp", "parts")},
        "counter_ptr": "*i32",
        "loss_ptr": "*fp32",
        "metrics_ptr": "*fp32",
        "rows": "i32",
        "group_size": "i32",
        **{x: "fp32" for x in ("share", "lo", "hi", "dual", "beta", "w_low", "w_cap", "eps")},
    }
    block, warps = tile(length, 1, wide=correction == "sequence_truncate")
    scale = {"none": "given", "token_mask": "group", "sequence_truncate": "batch"}[correction]
    constexprs = choices(loss_type, correction, weight, scale)
    constexprs |= {"GROUP_BLOCK": 1024 if signature["ids_ptr"] else 64, "BLOCK": block}
    return name, grpo_loss_kernel, signature, constexprs, warps, 3
