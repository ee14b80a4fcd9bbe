"""Importing this package registers every op: each module here enters one."""

from __future__ import annotations

import importlib
import os
import pkgutil

LENIENT = bool(os.environ.get("VISA_BENCH_LENIENT"))
"""When another commit's kernels are measured (bench/base.py), an op that it lacks is left out."""

names = sorted(module.name for module in pkgutil.iter_modules(__path__))
for name in names:
    try:
        importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        if not LENIENT:
            raise
        print(f"bench/ops/{name}.py left out: {error}")
