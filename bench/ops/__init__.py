"""Importing this package registers every op: each module here enters one."""

from __future__ import annotations

import importlib
import pkgutil

names = sorted(module.name for module in pkgutil.iter_modules(__path__))
for name in names:
    importlib.import_module(f"{__name__}.{name}")
