"""Whether Triton is one of those before 3.7, which keep more in registers than later ones."""

from __future__ import annotations

import re

import triton

OLD_TRITON = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2]) < (3, 7)
"""Some kernels then take smaller tiles or more warps, so that none spills."""
