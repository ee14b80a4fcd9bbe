"""Element types of the native kernels and the codes they go by; csrc/cpu/dtypes.h has the same."""

from __future__ import annotations

import torch

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types that kernels take: all compute in float32. float64 goes to the reference."""
